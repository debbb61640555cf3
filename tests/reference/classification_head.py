#!/usr/bin/env python3
"""Goldens of a classification head from transformers and PEFT, on the tiny models that families.py made.

usage: classification_head.py [NAME ...]        (all of them without a name)
needs: torch, transformers, peft. Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2.

AutoModelForSequenceClassification over the base, LoRA of task_type SEQ_CLS: PEFT then trains the head `score` beside the
factors and saves it with them. Writes model/tests/golden/classification/NAME/:
  adapter/        as PEFT saves it: rank 2 on every linear layer, factors and head random
  golden.json     rows of token ids, the class and the weight of each; "adapted", "stepped": the classes' logits under the
                  adapter and after one step of SGD on it and on the head; "loss", the weighted mean of the rows' cross-entropies,
                  and its gradients "grads", of the head and of the factors in the first layer
The model itself is model/tests/golden/families/NAME. model/tests/classification.rs reads them.
"""

import json
import shutil
import sys
import warnings

import torch
from families import LEARNING_RATE, OUT as FAMILIES, plain, save_adapter, short
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

warnings.filterwarnings("ignore")
OUT = FAMILIES.parent / "classification"
# Its own head; a tied one.
NAMES = ["llama", "qwen2"]
CLASSES = 3


def logits(model, rows):
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0].tolist() for row in rows]


def named(name):
    return plain(name).replace(".modules_to_save", ".weight")


def make(name):
    generator = torch.Generator().manual_seed(2000 + sum(map(ord, name)))
    base = FAMILIES / name
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=CLASSES, attn_implementation="eager", dtype=torch.float32
    ).eval()
    rows = json.loads((base / "golden.json").read_text())["rows"]
    rows = rows + [rows[0][:6] + rows[1][6:8]]
    classes, weights = [2, 0, 1], [1.0, 0.25, 0.5]
    lora = LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", task_type="SEQ_CLS")
    adapted = get_peft_model(model, lora).eval()
    parts = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert sum("score" in n for n in parts) == 1, list(parts)
    with torch.no_grad():
        for p in parts.values():
            p.normal_(0.0, 0.3, generator=generator)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(adapted, folder)
    with_adapter = logits(adapted, rows)

    loss = 0.0
    for row, wanted, weight in zip(rows, classes, weights):
        loss = loss - weight * adapted(torch.tensor([row])).logits[0].log_softmax(-1)[wanted]
    loss = loss / sum(weights)
    loss.backward()
    grads = {named(n): p.grad.flatten().tolist() for n, p in parts.items() if ".layers.0." in n or "score" in n}
    with torch.no_grad():
        for p in parts.values():
            p -= LEARNING_RATE * p.grad
    golden = dict(
        rows=rows, classes=classes, weights=weights, learning_rate=LEARNING_RATE, adapted=with_adapter,
        loss=loss.item(), grads=grads, stepped=logits(adapted, rows),
    )
    (folder / "golden.json").write_text(json.dumps(short(golden), separators=(",", ":")) + "\n")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{name}: loss {loss.item():.4f}, {size} bytes, {sorted(grads)[-1]}")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        make(wanted)
