"""Golden codes of a frozen base: NF4 from bitsandbytes on the CPU, Q8_0 from llama.cpp's gguf package.

    pip install torch bitsandbytes gguf && python tests/reference/quantized_base.py > model/tests/golden/quantized_base.json
"""

import hashlib
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

# Scales in eight bits: 600 of them, in three blocks of which the last is cut short.
BLOCKS = 600
i = np.arange(BLOCKS * 64, dtype=np.uint64)
random = ((i * np.uint64(2654435761)) % np.uint64(1 << 32)) >> np.uint64(8)
block = i // np.uint64(64)
scale = np.float32(1) + ((block * block) % np.uint64(97)).astype(np.float32) / np.float32(16)
many = torch.from_numpy((random.astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)) * scale)
twice, twice_state = bnb.quantize_4bit(many, blocksize=64, quant_type="nf4", compress_statistics=True)
twice_back = bnb.dequantize_4bit(twice, twice_state).reshape(-1)
sha256 = lambda values: hashlib.sha256(values.numpy().tobytes()).hexdigest()

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
            "nf4_double": {
                "table": bits(bnb.create_dynamic_map().numpy()),
                "blocks": BLOCKS,
                "scales": bytes(twice_state.absmax.tolist()).hex(),
                "absmax": bits(twice_state.state2.absmax.numpy()),
                "offset": bits(twice_state.offset.numpy().reshape(1))[0],
                "codes_sha256": sha256(twice.reshape(-1)),
                "back_sha256": sha256(twice_back),
            },
            "q8_0": q8_0.tobytes().hex(),
        }
    )
)
