"""Block influence by transformers beside `limbeck carve`, on the same prompts and the same weights.

    python tests/reference/influence.py LIMBECK MODEL.gguf FOLDER PROMPTS.jsonl

FOLDER holds the same model for transformers (float32 safetensors and a tokenizer). Needs torch and transformers. Prints the
largest difference over the layers and over the stretches of layers, and ends with 1 where it is above 1e-4.
"""

import json
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

limbeck, model, folder, prompts = sys.argv[1:]
ROWS = 24

told = subprocess.run(
    [limbeck, "carve", model, "--prompts", prompts, "--rows", str(ROWS), "--json"], check=True, capture_output=True, text=True
)
ours = json.loads(told.stdout)["measured"]["influence"]

tokenizer = AutoTokenizer.from_pretrained(folder)
net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
texts = [json.loads(line)["text"] for line in open(prompts) if line.strip()]
n = min(ROWS, len(texts))
texts = [texts[i * len(texts) // n] for i in range(n)]
rows = []
for text in texts:
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
    rows.append(tokenizer(rendered, add_special_tokens=False).input_ids)
shared = min(len(row) for row in rows) - 1
for row in rows[1:]:
    same = next((i for i, (a, b) in enumerate(zip(rows[0], row)) if a != b), min(len(rows[0]), len(row)))
    shared = min(shared, same)

last = []
net.model.layers[-1].register_forward_hook(lambda _m, _i, out: last.append(out[0] if isinstance(out, tuple) else out))
layers = len(net.model.layers)
sums, tokens = torch.zeros(layers, layers + 1, dtype=torch.float64), 0
with torch.no_grad():
    for row in rows:
        last.clear()
        states = list(net(torch.tensor([row]), output_hidden_states=True).hidden_states)
        # Theirs is behind the final norm.
        states[-1] = last[0].reshape(states[-1].shape)
        states = [state[0, shared:].double() for state in states]
        tokens += len(row) - shared
        for i in range(layers):
            for j in range(i + 1, layers + 1):
                sums[i, j] += (1 - torch.nn.functional.cosine_similarity(states[i], states[j], dim=-1)).sum()
theirs = sums / tokens
assert tokens == ours["tokens"], (tokens, ours["tokens"])
by_layer = max(abs(ours["layers"][i] - theirs[i, i + 1].item()) for i in range(layers))
by_stretch = max(abs(d - theirs[i, i + 1 + k].item()) for i, row in enumerate(ours["distances"]) for k, d in enumerate(row))
print(f"{layers} layers, {tokens} tokens: largest difference {by_layer:.1e} of a layer, {by_stretch:.1e} of a stretch")
sys.exit(by_layer > 1e-4 or by_stretch > 1e-4)
