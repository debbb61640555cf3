"""Golden codes of a frozen base: NF4 from bitsandbytes on the CPU, Q8_0 from llama.cpp's gguf package.

    pip install torch bitsandbytes gguf && python tests/reference/quantized_base.py > model/tests/golden/quantized_base.json
"""

import json

import bitsandbytes.functional as bnb
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

torch.manual_seed(5)
weights = torch.randn(9, 64) * torch.logspace(-3, 2, 9).unsqueeze(1)
weights[2] = 0.0
# Where two codes are equally near: the points between them, by bitsandbytes' own table, under a largest value of 1.
table = bnb.get_4bit_type("nf4", device="cpu")
weights[3, :15] = (table[:-1] + table[1:]) / 2
weights[3, 15] = 1.0
weights[3, 16:] = 0.25
flat = weights.reshape(-1).contiguous()


def bits(values):
    return [int(x) for x in np.asarray(values, dtype=np.float32).view(np.uint32)]


packed, state = bnb.quantize_4bit(flat, blocksize=64, quant_type="nf4", compress_statistics=False)
back = bnb.dequantize_4bit(packed, state)
q8_0 = quantize(flat.numpy(), GGMLQuantizationType.Q8_0)

print(
    json.dumps(
        {
            "shape": list(weights.shape),
            "values": bits(flat.numpy()),
            "nf4": {
                "codes": bytes(packed.reshape(-1).tolist()).hex(),
                "absmax": bits(state.absmax.numpy()),
                "back": bits(back.reshape(-1).numpy()),
            },
            "q8_0": q8_0.tobytes().hex(),
        }
    )
)
