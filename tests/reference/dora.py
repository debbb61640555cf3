#!/usr/bin/env python3
"""Goldens of DoRA from PEFT, on the tiny models that families.py made: logits, one step, and the merged weights.

usage: dora.py [NAME ...]        (all of them without a name)
needs: torch, transformers, peft. Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2.

Writes model/tests/golden/dora/NAME/:
  adapter/        as PEFT saves it: rank 2 on every linear layer, factors random, magnitudes away from the row norms
  golden.json     as that of families.py, without the adapter-free logits, and with "start" and "merged": the magnitudes
                  that PEFT begins with and the merged weights, of two modules in the first layer
The model itself is model/tests/golden/families/NAME. model/tests/dora.rs and quantize/tests/dora.rs read them.
"""

import json
import shutil
import sys
import warnings

import torch
from families import LEARNING_RATE, OUT as FAMILIES, logits, one_step, plain, save_adapter, short
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
OUT = FAMILIES.parent / "dora"
# Plain; with biases; with q, k, v and gate, up in one module; with norms around everything and GeGLU.
NAMES = ["llama", "qwen2", "phi3", "gemma3"]


def make(name):
    generator = torch.Generator().manual_seed(1000 + sum(map(ord, name)))
    base = FAMILIES / name
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32).eval()
    known = json.loads((base / "golden.json").read_text())
    rows, at, targets = known["rows"], known["at"], known["targets"]
    lora = LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True)
    adapted = get_peft_model(model, lora).eval()
    parts = {n: p for n, p in adapted.named_parameters() if "lora_" in n}
    first = [n for n in parts if ".layers.0." in n and "magnitude" in n]
    looked_at = [first[0], first[-1]]
    start = {plain(n): parts[n].detach().tolist() for n in looked_at}
    with torch.no_grad():
        for n, p in parts.items():
            if "magnitude" in n:
                p.mul_(1.0 + 0.5 * torch.rand(p.shape, generator=generator))
            else:
                p.normal_(0.0, 0.3, generator=generator)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(adapted, folder)
    with_adapter = logits(adapted, rows, at)

    loss, grads, stepped = one_step(adapted, parts, rows, at, targets)
    with torch.no_grad():
        for p in parts.values():
            p += LEARNING_RATE * p.grad
    merged_model = adapted.merge_and_unload()
    weights = dict(merged_model.named_parameters())
    merged = {}
    for n in looked_at:
        module = plain(n).removesuffix(".lora_magnitude_vector")
        merged[f"{module}.weight"] = weights[f"{module}.weight"].flatten().tolist()
    golden = dict(
        rows=rows, at=at, targets=targets, learning_rate=LEARNING_RATE, adapted=with_adapter, loss=loss,
        grads=grads, stepped=stepped, start=start, merged=merged,
    )
    (folder / "golden.json").write_text(json.dumps(short(golden), separators=(",", ":")) + "\n")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{name}: loss {loss:.4f}, {size} bytes")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        make(wanted)
