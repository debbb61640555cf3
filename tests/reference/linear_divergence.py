"""Golden values of the divergences from a sparse teacher, loss and gradients by hidden states and head, from PyTorch in float64.

    pip install torch && python tests/reference/linear_divergence.py > model/tests/golden/linear_divergence.json

The bucket is that of DistillKit's `symmetric_uniform` (a61c2e7, distillkit/lossfuncs/kl.py) without its clamps: the
teacher's tokens as they are, and one outcome for all others on both sides. The divergences are written over those outcomes
as their papers have them (methods: GKD, DistiLLM, ABKD). Where a target has a right token, the loss is
(1 - share) times its cross-entropy and share times the divergence.
"""

import json

import torch

torch.manual_seed(3)
rows, width, vocab, denominator = 6, 8, 29, 2.5
hidden = torch.randn(rows, width, dtype=torch.float32)
head = torch.randn(vocab, width, dtype=torch.float32)
teacher = torch.log_softmax(2.0 * torch.randn(4, vocab, dtype=torch.float64), dim=1)

targets = []
for position, (row, k, weight, share) in enumerate(
    [(0, 1, 1.0, 0.5), (2, 5, 0.5, None), (5, 20, 2.0, 0.3), (2, vocab, 0.75, 0.9)]
):
    log_probs, tokens = teacher[position].topk(k)
    target = {"row": row, "tokens": tokens.tolist(), "log_probs": log_probs.float().tolist(), "weight": weight}
    if share is not None:
        target |= {"gold": tokens[-1].item(), "share": share}
    targets.append(target)
# A teacher that is sure, one that told nothing, and draws among which the right token is not.
targets.append({"row": 1, "tokens": [7], "log_probs": [0.0], "weight": 1.0})
targets.append({"row": 3, "tokens": [], "log_probs": [], "weight": 1.0})
drawn = torch.tensor([0.5, 0.3, 0.2]).log().tolist()
targets.append({"row": 4, "tokens": [2, 9, 11], "log_probs": drawn, "weight": 1.0, "gold": 20, "share": 0.5})


def entropy(x, y):
    """x log(x / y), 0 at x = 0."""
    return torch.where(x > 0, x * (x.clamp_min(1e-300) / y).log(), torch.zeros_like(x))


def divergence(kind, p, q):
    if kind == "forward_kl":
        return entropy(p, q).sum()
    if kind == "reverse_kl":
        return (q * (q / p.clamp_min(1e-8)).log()).sum()
    if kind == "js":
        m = 0.3 * p + 0.7 * q
        return 0.3 * entropy(p, m).sum() + 0.7 * entropy(q, m).sum()
    if kind == "skew_kl":
        return entropy(p, 0.1 * p + 0.9 * q).sum()
    a, b = 0.2, 0.7
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum() / (a * b)


def of(kind):
    x = hidden.double().requires_grad_()
    w = head.double().requires_grad_()
    logits = x @ w.T
    total = torch.zeros((), dtype=torch.float64)
    for target in targets:
        q = torch.log_softmax(logits[target["row"]], dim=0)
        tokens = torch.tensor(target["tokens"], dtype=torch.long)
        p = torch.tensor(target["log_probs"], dtype=torch.float64).exp()
        outcomes_p, outcomes_q = p, q[tokens].exp()
        if len(tokens) < vocab:
            rest = torch.ones(vocab, dtype=torch.bool)
            rest[tokens] = False
            if (gold := target.get("gold")) is not None and gold not in target["tokens"]:
                # Told with no probability: an outcome of its own.
                rest[gold] = False
                outcomes_p = torch.cat([outcomes_p, torch.zeros(1, dtype=torch.float64)])
                outcomes_q = torch.cat([outcomes_q, q[gold : gold + 1].exp()])
            tail = (1.0 - p.sum()).clamp_min(0.0)
            outcomes_p = torch.cat([outcomes_p, tail[None]])
            outcomes_q = torch.cat([outcomes_q, q[rest].logsumexp(0).exp()[None]])
        loss = divergence(kind, outcomes_p, outcomes_q)
        if "gold" in target:
            loss = target["share"] * loss - (1 - target["share"]) * q[target["gold"]]
        total = total + target["weight"] * loss
    loss = total / denominator
    loss.backward()
    flat = lambda t: t.reshape(-1).tolist()
    return {"loss": loss.item(), "gradient": flat(x.grad), "head_gradient": flat(w.grad)}


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
            "of": {kind: of(kind) for kind in ["forward_kl", "reverse_kl", "js", "skew_kl", "alpha_beta"]},
        }
    )
)
