"""Golden values of the divergence from a sparse teacher, loss and gradient, from PyTorch in float64.

    pip install torch && python tests/reference/linear_kl.py > model/tests/golden/linear_kl.json

The formula is that of DistillKit's `symmetric_uniform` (a61c2e7, distillkit/lossfuncs/kl.py) without its clamps: the
teacher's tokens as they are, and one bucket for all others on both sides.
"""

import json

import torch

torch.manual_seed(3)
rows, width, vocab, denominator = 6, 8, 29, 2.5
hidden = torch.randn(rows, width, dtype=torch.float32)
head = torch.randn(vocab, width, dtype=torch.float32)
teacher = torch.log_softmax(2.0 * torch.randn(4, vocab, dtype=torch.float64), dim=1)

targets = []
for position, (row, k, weight) in enumerate([(0, 1, 1.0), (2, 5, 0.5), (5, 20, 2.0), (2, vocab, 0.75)]):
    log_probs, tokens = teacher[position].topk(k)
    targets.append(
        {"row": row, "tokens": tokens.tolist(), "log_probs": log_probs.float().tolist(), "weight": weight}
    )
# A teacher that is sure, and one that told nothing.
targets.append({"row": 1, "tokens": [7], "log_probs": [0.0], "weight": 1.0})
targets.append({"row": 3, "tokens": [], "log_probs": [], "weight": 1.0})

x = hidden.double().requires_grad_()
logits = x @ head.double().T
total = torch.zeros((), dtype=torch.float64)
for target in targets:
    q = torch.log_softmax(logits[target["row"]], dim=0)
    tokens = torch.tensor(target["tokens"], dtype=torch.long)
    log_p = torch.tensor(target["log_probs"], dtype=torch.float64)
    p = log_p.exp()
    kl = (p * (log_p - q[tokens])).sum()
    tail = 1.0 - p.sum()
    if len(tokens) < vocab and tail > 0:
        rest = torch.ones(vocab, dtype=torch.bool)
        rest[tokens] = False
        kl = kl + tail * (tail.log() - q[rest].logsumexp(0))
    total = total + target["weight"] * kl
loss = total / denominator
loss.backward()

print(
    json.dumps(
        {
            "rows": rows,
            "width": width,
            "vocab": vocab,
            "denominator": denominator,
            "hidden": hidden.reshape(-1).tolist(),
            "head": head.reshape(-1).tolist(),
            "targets": targets,
            "loss": loss.item(),
            "gradient": x.grad.reshape(-1).tolist(),
        }
    )
)
