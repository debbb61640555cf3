#!/usr/bin/env python3
"""PEFT as the referee of an adapter that was saved here: does it load, and does the model answer alike?

usage: peft_adapter.py FOLDER ...

Each FOLDER comes from model/examples/save-adapter.rs: `adapter/`, saved by us, and `ours.json` with {"base": folder of the
model, "rows": [[token ids]], "logits": per row those after its last token, "plain": the same without the adapter}.
Exit status: 0 the logits agree to 2e-5 of the largest, and the adapter does something; 1 they do not.
Needs torch, transformers, peft (made with 2.15.0, 5.23.0, 0.21.2).
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
worst = 0.0
for folder in map(Path, sys.argv[1:]):
    ours = json.loads((folder / "ours.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(ours["base"], attn_implementation="eager", dtype=torch.float32)
    with warnings.catch_warnings():
        # PEFT only warns of factors that it can't place.
        warnings.filterwarnings("error", message=".*[Mm]issing|.*unexpected")
        model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        theirs = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in ours["rows"]])
    mine, plain = torch.tensor(ours["logits"]), torch.tensor(ours["plain"])
    gap = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    does = ((mine - plain).abs().max() / theirs.abs().max()).item()
    print(f"{folder.name}: PEFT's logits differ by {gap:.1e} of the largest; the adapter moves them by {does:.2f}")
    worst = max(worst, gap if does > 0.01 else 1.0)
sys.exit(worst > 2e-5)
