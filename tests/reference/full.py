#!/usr/bin/env python3
"""Goldens of full fine-tuning from transformers, on the tiny models that families.py made: the gradient of every weight.

usage: full.py [NAME ...]        (all of them without a name)
needs: torch, transformers, safetensors. Made with torch 2.15.0, transformers 5.23.0.

Writes model/tests/golden/full/NAME/:
  grads.safetensors   the gradients of the loss of families.py's rows by all weights, under the weights' names, float32;
                      a head that is tied to the embedding has its share in the embedding's
  golden.json         "loss", "learning_rate", "stepped": logits at families.py's places after one step of SGD on all
                      weights; "decay": the weights that transformers' Trainer lets decay
The model itself, rows, targets and places are in model/tests/golden/families/NAME. model/tests/full.rs and
trainer/tests/full.rs read them.
"""

import json
import shutil
import sys
import warnings

import torch
from families import OUT as FAMILIES, logits, short
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Trainer

warnings.filterwarnings("ignore")
OUT = FAMILIES.parent / "full"
LEARNING_RATE = 0.01
# A head of its own; a tied one; biases; one module for q, k, v; norms over heads; everything that Gemma has, with caps.
NAMES = ["llama", "smollm2", "qwen2", "phi3", "qwen3", "gemma2", "gemma3"]


def make(name):
    base = FAMILIES / name
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32).eval()
    known = json.loads((base / "golden.json").read_text())
    rows, at, targets = known["rows"], known["at"], known["targets"]
    loss = 0.0
    for r, row in enumerate(rows):
        log_probs = model(torch.tensor([row])).logits[0].log_softmax(-1)
        loss = loss - sum(log_probs[p, t] for q, p, t in targets if q == r)
    loss = loss / len(targets)
    loss.backward()
    weights = dict(model.named_parameters())
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({n: p.grad.contiguous() for n, p in weights.items()}, folder / "grads.safetensors")
    (folder / "grads.safetensors").chmod(0o644)
    with torch.no_grad():
        for p in weights.values():
            p -= LEARNING_RATE * p.grad
    golden = short(dict(loss=loss.item(), learning_rate=LEARNING_RATE, stepped=logits(model, rows, at)))
    golden["decay"] = sorted(Trainer.get_decay_parameter_names(None, model))
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{name}: loss {loss.item():.4f}, {len(weights)} weights, {size} bytes")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        make(wanted)
