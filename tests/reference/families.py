#!/usr/bin/env python3
"""Goldens of the model families: tiny random models, their logits, and one LoRA step, from transformers and PEFT.

usage: families.py [NAME ...]        (all of them without a name)
needs: torch, transformers, peft. Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2.

Writes model/tests/golden/families/NAME/:
  config.json, model.safetensors      as transformers saves them, float32
  adapter/                            as PEFT saves it: rank 2 on every linear layer, both factors random
  golden.json                         rows of token ids; "at": the (row, position) pairs that are looked at;
                                      "base", "adapted", "stepped": logits there without the adapter, with it, and after
                                      one step of SGD on it; "loss" over "targets" (row, position, token) and its
                                      gradients "grads", of the factors in the first layer
model/tests/families.rs reads them. Everything is seeded; attention is the eager one.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
OUT = Path(__file__).parents[2] / "model/tests/golden/families"
LEARNING_RATE = 0.25
SMALL = dict(
    hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=64, max_position_embeddings=64, pad_token_id=None, bos_token_id=1, eos_token_id=2,
)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
GEMMA = dict(head_dim=8, query_pre_attn_scalar=10, sliding_window=5)
# The rows have 20 and 9 tokens and share their first 6: windows of 5 or 7 bite in both and cut into the shared part.
FAMILIES = {
    # Llama 2: plain, its own head.
    "llama": ("Llama", dict(tie_word_embeddings=False, rms_norm_eps=1e-5)),
    # Llama 3.1 and 3.2: all three ranges of the frequency scaling occur among the four frequencies.
    "llama3": ("Llama", dict(
        head_dim=8, tie_word_embeddings=True, max_position_embeddings=128, rope_parameters=LLAMA3)),
    "llama-linear": ("Llama", dict(
        num_hidden_layers=1, head_dim=8, attention_bias=True, mlp_bias=True,
        rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0))),
    "llama-dynamic": ("Llama", dict(
        num_hidden_layers=1, head_dim=8, rope_parameters=dict(rope_type="dynamic", factor=4.0, rope_theta=10000.0))),
    "smollm2": ("Llama", dict(
        num_attention_heads=3, num_key_value_heads=1, hidden_size=24, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=100000.0))),
    # The fourth layer does not rotate.
    "smollm3": ("SmolLM3", dict(num_hidden_layers=4)),
    "mistral": ("Mistral", dict(sliding_window=5)),
    "qwen2": ("Qwen2", dict(
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=7, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=8)),
    "gemma2": ("Gemma2", dict(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=5.0)),
    "gemma3": ("Gemma3Text", dict(
        **GEMMA, num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=10000.0),
            full_attention=dict(rope_type="linear", factor=2.0, rope_theta=1000000.0)))),
    "gemma3-softcap": ("Gemma3Text", dict(
        **GEMMA, num_hidden_layers=1, layer_types=["sliding_attention"], final_logit_softcapping=5.0)),
    "phi3": ("Phi3", dict(sliding_window=7)),
    # The rows are within the original context, which is as short as llama.cpp makes one.
    "phi3-longrope": ("Phi3", dict(
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024, original_max_position_embeddings=256,
        rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.25, 1.5, 2.0],
                             long_factor=[1.5, 3.0, 6.0, 12.0]))),
}


def randomize(model, generator):
    """Weights far from their defaults, so that nothing can be left out unnoticed."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0.0, 0.3, generator=generator)
            if "norm" in name and "Gemma" not in type(model).__name__:
                p.add_(1.0)


def logits(model, rows, at):
    with torch.no_grad():
        all_rows = [model(torch.tensor([row])).logits[0] for row in rows]
    return [all_rows[r][p].tolist() for r, p in at]


def plain(name):
    """A parameter's name as the adapter's file has it."""
    return name.removeprefix("base_model.model.").replace(".default.weight", "")


def save_adapter(adapted, folder):
    """Under folder/adapter, without the place where the base lay, which PEFT fills in as it saves."""
    adapted.save_pretrained(folder / "adapter")
    config = folder / "adapter/adapter_config.json"
    known = json.loads(config.read_text())
    known["base_model_name_or_path"] = None
    config.write_text(json.dumps(known, indent=2, sort_keys=True))
    (folder / "adapter/README.md").unlink(missing_ok=True)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def one_step(adapted, parts, rows, at, targets):
    """The loss, its gradients in the first layer, and the logits behind one step of SGD, which the parts then hold."""
    loss = 0.0
    for r, row in enumerate(rows):
        log_probs = adapted(torch.tensor([row])).logits[0].log_softmax(-1)
        loss = loss - sum(log_probs[p, t] for q, p, t in targets if q == r)
    loss = loss / len(targets)
    loss.backward()
    grads = {plain(n): p.grad.flatten().tolist() for n, p in parts.items() if ".layers.0." in n}
    with torch.no_grad():
        for p in parts.values():
            p -= LEARNING_RATE * p.grad
    return loss.item(), grads, logits(adapted, rows, at)


def make(name):
    kind, settings = FAMILIES[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomize(model, generator)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    tokens = lambda n: torch.randint(3, 64, (n,), generator=generator).tolist()
    shared = tokens(6)
    rows = [shared + tokens(14), shared + tokens(3)]
    targets = [(0, p, rows[0][p + 1]) for p in (10, 17, 18)] + [(1, p, rows[1][p + 1]) for p in (6, 7)]
    at = [(0, 5), (0, 19), (1, 8)]
    base = logits(model, rows, at)

    lora = LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora).eval()
    factors = {n: p for n, p in adapted.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for p in factors.values():
            p.normal_(0.0, 0.3, generator=generator)
    save_adapter(adapted, folder)
    with_adapter = logits(adapted, rows, at)

    loss, grads, stepped = one_step(adapted, factors, rows, at, targets)
    golden = dict(
        rows=rows, at=at, targets=targets, learning_rate=LEARNING_RATE, base=base, adapted=with_adapter,
        loss=loss, grads=grads, stepped=stepped,
    )
    text = json.dumps(short(golden), separators=(",", ":"))
    (folder / "golden.json").write_text(text + "\n")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{name}: loss {loss:.4f}, {size} bytes")


def short(value):
    """Floats with the 8 digits that float32 can bear."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {k: short(v) for k, v in value.items()}
    return [short(v) for v in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    for wanted in sys.argv[1:] or FAMILIES:
        make(wanted)
