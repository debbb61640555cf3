#!/usr/bin/env python3
"""A training of 50 steps in PyTorch + PEFT, for trainer/tests/loss_curve.rs: the same adapter to begin with, the same batches.

    python tests/reference/loss_curve_golden.py                       the tiny Llama, into trainer/tests/loss_curve/
    python tests/reference/loss_curve_golden.py BASE OUT              a base of your own (SmolLM2-135M), into OUT

needs: torch, transformers, peft. Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2.

AdamW with weight decay, linear warm-up and cosine decay (ours: the first step already has a rate), clipping by the global
norm, micro-batches of four rows accumulated over two, the mean over the tokens that carry loss in the whole step. LoRA of
rank 4 on every linear layer, from PEFT's own start.

The curve is computed in float64, and in float32 in ways that differ in rounding alone: how the rows of a step are cut into
micro-batches, their order in them, and, of a whole model, the order of the channels, which is the order that every sum is
taken in. (Of SmolLM2-135M all batches give one rounding error, for it is made in the first layers at the few huge channels of
the residual stream; another order of channels gives another, of either sign.) How far these leave the float64 curve is the
yardstick: "spread" holds, for each step, the largest distance, and "adapter_spread" the same of the adapter at the end.
"""

import json
import math
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
if len(sys.argv) == 1:
    # Waiting threads cost a busy machine more than these small matrices gain by them.
    torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
STEPS, WARMUP, PER_STEP = 50, 5, 8
SETTINGS = dict(learning_rate=5e-3, weight_decay=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8, max_grad_norm=1.8)
if len(sys.argv) > 1:
    # A whole model diverges at the tiny one's rate, and of a training that does nothing can be told.
    SETTINGS["learning_rate"] = 5e-4
# Rows a micro-batch, whether the rows stand in reverse, and the seed of an order of channels.
WAYS = [(4, False, None), (8, False, None), (2, False, None), (1, True, None), (4, True, None)]
WAYS_OF_A_WHOLE_MODEL = [(4, False, None), (8, False, None), (4, False, 1), (4, False, 2), (4, False, 3)]


def rate(step):
    if step < WARMUP:
        return SETTINGS["learning_rate"] * (step + 1) / WARMUP
    return SETTINGS["learning_rate"] * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def rows(vocab, n, longest):
    """Answers that follow from the last tokens of their prompts, so that there is something to learn."""
    draw = random.Random(11)
    out = []
    for _ in range(n):
        prompt = [draw.randrange(3, vocab) for _ in range(draw.randrange(2, longest))]
        kind = draw.randrange(5)
        prompt.append(3 + kind)
        answer = [3 + (7 * kind + i) % 20 for i in range(1 + draw.randrange(4))] + [2]
        ids = prompt + answer
        out.append({"ids": ids, "mask": [False] * len(prompt) + [True] * len(answer)})
    return out


def exact_norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def exact_rotation(self, x, position_ids):
    config = self.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = config.rope_parameters["rope_theta"]
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = position_ids[:, :, None].double() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def reorder(model, seed):
    """Another order of the residual stream's and the feed-forward's channels; returns how to undo it, by parameter."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randperm(model.config.hidden_size, generator=draw)
    inner = torch.randperm(model.config.intermediate_size, generator=draw)
    # Outputs and inputs of each linear layer.
    sides = {"q_proj": (None, hidden), "k_proj": (None, hidden), "v_proj": (None, hidden), "o_proj": (hidden, None),
             "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}  # fmt: skip
    undo = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            linear = next((sides[part] for part in name.split(".") if part in sides), None)
            if linear is None:
                rows, columns = (hidden, None) if p.dim() == 1 else (None, hidden)
            else:
                rows, columns = (None if "lora_A" in name else linear[0]), (None if "lora_B" in name else linear[1])
            if rows is not None:
                p.copy_(p[rows])
            if columns is not None:
                p.copy_(p[:, columns])
            undo[name] = [None if order is None else order.argsort() for order in (rows, columns)]
    return undo


def train(base, adapter, all_rows, batches, dtype, micro, reverse, seed=None):
    # transformers computes norms, rotation and eager attention's softmax in float32 whatever the model's type.
    attention = "sdpa" if dtype == torch.float64 else "eager"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention)
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True).to(dtype)
    model.train()
    if dtype == torch.float64:
        for module in model.modules():
            for kind, forward in [("LlamaRMSNorm", exact_norm), ("LlamaRotaryEmbedding", exact_rotation)]:
                if type(module).__name__ == kind:
                    module.forward = forward.__get__(module)
    undo = {} if seed is None else reorder(model, seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    s = SETTINGS
    optimizer = torch.optim.AdamW(
        parameters, lr=1.0, betas=(s["beta1"], s["beta2"]), eps=s["epsilon"], weight_decay=s["weight_decay"]
    )
    losses, norms = [], []
    for step, batch in enumerate(batches):
        chosen = [all_rows[i] for i in batch]
        total = sum(sum(row["mask"]) for row in chosen)
        optimizer.zero_grad()
        loss_sum = 0.0
        for start in range(0, len(chosen), micro):
            part = chosen[start : start + micro]
            part = part[::-1] if reverse else part
            longest = max(len(row["ids"]) for row in part)
            ids = torch.zeros(len(part), longest, dtype=torch.long)
            attends = torch.zeros(len(part), longest, dtype=torch.long)
            labels = torch.full((len(part), longest), -100)
            for i, row in enumerate(part):
                n = len(row["ids"])
                ids[i, :n] = torch.tensor(row["ids"])
                attends[i, :n] = 1
                labels[i, :n] = torch.where(torch.tensor(row["mask"]), ids[i, :n], -100)
            logits = model(input_ids=ids, attention_mask=attends).logits
            flat = logits[:, :-1].reshape(-1, logits.shape[-1])
            loss = torch.nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum") / total
            loss.backward()
            loss_sum += loss.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, s["max_grad_norm"])))
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        losses.append(loss_sum)
    named = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            rows, columns = undo.get(name, (None, None))
            p = p.detach().double()
            p = p if rows is None else p[rows]
            p = p if columns is None else p[:, columns]
            named[name.removeprefix("base_model.model.").removesuffix(".default.weight")] = p.flatten()
    return losses, norms, named


def main(base, out, n_rows, longest, ways):
    out.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(4)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as scratch:
        get_peft_model(model, config).save_pretrained(scratch)
        for name in ["adapter_config.json", "adapter_model.safetensors"]:
            shutil.copy(Path(scratch) / name, out / name)
    saved = json.load(open(out / "adapter_config.json"))
    saved.update(base_model_name_or_path=None, target_modules=sorted(saved["target_modules"]))
    json.dump(saved, open(out / "adapter_config.json", "w"), indent=1, sort_keys=True)
    all_rows = rows(min(model.config.vocab_size, 2000), n_rows, longest)
    draw = random.Random(12)
    batches = [draw.sample(range(len(all_rows)), PER_STEP) for _ in range(STEPS)]
    exact, norms, end = train(base, out, all_rows, batches, torch.float64, 4, False)
    print("float64", exact[0], exact[-1], "clipped", sum(n > SETTINGS["max_grad_norm"] for n in norms), sorted(norms)[::7], file=sys.stderr)
    spread, adapter_spread = [0.0] * STEPS, 0.0
    size = max(float(v.abs().max()) for v in end.values())
    for micro, reverse, seed in ways:
        losses, _, found = train(base, out, all_rows, batches, torch.float32, micro, reverse, seed)
        distances = [abs(a - b) for a, b in zip(losses, exact)]
        spread = [max(a, b) for a, b in zip(spread, distances)]
        apart = max(float((found[k] - end[k]).abs().max()) for k in end) / size
        adapter_spread = max(adapter_spread, apart)
        print("float32", micro, reverse, seed, max(distances), apart, file=sys.stderr)
    golden = {
        "steps": STEPS, "warmup": WARMUP, "rows_a_micro_batch": 4, **SETTINGS, "rows": all_rows, "batches": batches,
        "losses": exact, "norms": norms, "spread": spread, "adapter_spread": adapter_spread,
        "adapter": {k: [float(f"{x:.9g}") for x in v] for k, v in end.items()} if size and len(end) < 200 else {},
    }  # fmt: skip
    parts = [f'"{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in golden.items()]
    (out / "golden.json").write_text("{" + ",\n".join(parts) + "}\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main(ROOT / "model/tests/golden/families/llama", ROOT / "trainer/tests/loss_curve", 40, 20, WAYS)
    elif len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]), 40, 6, WAYS_OF_A_WHOLE_MODEL)
    else:
        sys.exit(__doc__)
