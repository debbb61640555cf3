#!/usr/bin/env python3
"""Goldens for quantize/tests/calibration.rs: what goes into each linear map of tiny models, squared and summed by column.

usage: calibration.py ../../quantize/tests/golden/calibration.json      (needs: torch, transformers, peft)

The models, their adapters and rows of tokens are those of families.py. Each runs under its adapter, unmerged, with a hook
on every linear map of the base; the sums are in float64, over all tokens of all rows, under llama.cpp's names.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
FAMILIES = Path(__file__).parents[2] / "model/tests/golden/families"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def sums(name):
    folder = FAMILIES / name
    golden = json.loads((folder / "golden.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    model = PeftModel.from_pretrained(model, folder / "adapter").eval()
    totals = {}
    for layer, block in enumerate(model.get_base_model().model.layers):
        for part, gguf in NAMES.items():
            key = f"blk.{layer}.{gguf}.weight"

            def add(_, inputs, key=key):
                x = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1])
                totals[key] = totals.get(key, 0) + (x * x).sum(0)

            block.get_submodule(part).register_forward_pre_hook(add)
    with torch.no_grad():
        for row in golden["rows"]:
            model(torch.tensor([row]))
    return {key: [float(f"{v:.8g}") for v in total.tolist()] for key, total in sorted(totals.items())}


golden = {name: sums(name) for name in ("llama", "smollm2", "qwen3", "llama3")}
with open(sys.argv[1], "w", encoding="utf-8") as f:
    f.write(json.dumps(golden, separators=(",", ":")) + "\n")
