"""Golden values of distillation over labels: the exact posterior over a label trie, five divergences, temperatures, weights;
the loss and its gradients by the hidden states and by the head, from PyTorch in float64.

    pip install torch && python tests/reference/label_kd.py > trainer/tests/label_kd.json

The labels' posterior is written out path by path here, a product of softmaxes over the children at each fork, and autograd goes
through it. Formulas: Hinton et al. 2015 (T^2), Agarwal et al. 2023 (GJSD), Ko et al. 2024 (skew), Wang et al. 2025 (alpha-beta).
"""

import json

import torch

torch.manual_seed(11)
torch.set_default_dtype(torch.float64)
WIDTH, VOCAB, TOKENS = 8, 23, 40
# Tokens of the labels, each ending in 9: forks at the root, behind 1, and behind 1 2.
LABELS = [[1, 2, 3, 9], [1, 2, 4, 9], [5, 6, 9], [1, 9], [7, 9]]
# Nodes above forks as the trie lists them: (token, parent), -1 the prompt's last token.
NODES = [(1, -1), (2, 0)]
DENOMINATOR = 2.5

hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float32)
head = torch.randn(VOCAB, WIDTH, dtype=torch.float32)
# Three rows: where the prompt's last token lies, where the first node does, the weight.
rows = [(3, 4, 1.0), (12, 20, 0.4), (31, 32, 0.75)]
teacher = torch.softmax(2.0 * torch.randn(3, len(LABELS)), dim=1)
teacher[1] = torch.tensor([0.9, 0.1, 0.0, 0.0, 0.0])
teacher = teacher.float()


def log_posterior(x, w, root, nodes):
    """By following each label's tokens down the tree."""
    at = {(): root, (1,): nodes, (1, 2): nodes + 1}
    out = []
    for label in LABELS:
        total = torch.zeros(())
        for depth in range(len(label)):
            path = tuple(label[:depth])
            children = sorted({other[depth] for other in LABELS if tuple(other[:depth]) == path and len(other) > depth})
            if len(children) > 1:
                logits = w[children] @ x[at[path]]
                total = total + torch.log_softmax(logits, dim=0)[children.index(label[depth])]
        out.append(total)
    return torch.stack(out)


def kl(p, q):
    return torch.where(p > 0, p * (torch.where(p > 0, p, torch.ones(())).log() - q.log()), torch.zeros(())).sum()


DIVERGENCES = {
    "forward_kl": lambda p, q: kl(p, q),
    "reverse_kl": lambda p, q: (q * (q.log() - p.clamp(min=1e-8).log())).sum(),
    "jensen_shannon": lambda p, q: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    "skew_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "alpha_beta": lambda p, q: -(
        p**0.2 * q**0.7 - 0.2 / 0.9 * p**0.9 - 0.7 / 0.9 * q**0.9
    ).sum() / (0.2 * 0.7),
}
PARAMETERS = {
    "forward_kl": "forward_kl",
    "reverse_kl": "reverse_kl",
    "jensen_shannon": {"jensen_shannon": {"beta": 0.3}},
    "skew_kl": {"skew_kl": {"alpha": 0.1}},
    "alpha_beta": {"alpha_beta": {"alpha": 0.2, "beta": 0.7}},
}

cases = []
for name, divergence in DIVERGENCES.items():
    for temperature in (1.0, 2.0):
        x, w = hidden.double().requires_grad_(), head.double().requires_grad_()
        loss = torch.zeros(())
        for (root, nodes, weight), p in zip(rows, teacher.double()):
            q = torch.softmax(log_posterior(x, w, root, nodes) / temperature, dim=0)
            p = p / p.sum()
            p_t = p ** (1 / temperature)
            p_t = p_t / p_t.sum()
            loss = loss + weight * temperature**2 * divergence(p_t, q)
        loss = loss / DENOMINATOR
        loss.backward()
        cases.append(
            {
                "divergence": PARAMETERS[name],
                "temperature": temperature,
                "loss": loss.item(),
                "by_hidden": [round(v, 9) for v in x.grad[[3, 4, 5, 12, 20, 21, 31, 32, 33]].reshape(-1).tolist()],
                "by_head": [round(v, 9) for v in w.grad[[1, 2, 3, 4, 5, 7, 9]].reshape(-1).tolist()],
            }
        )

print(
    json.dumps(
        {
            "width": WIDTH,
            "vocab": VOCAB,
            "tokens": TOKENS,
            "labels": LABELS,
            "nodes": NODES,
            "denominator": DENOMINATOR,
            "rows": rows,
            "teacher": teacher.tolist(),
            "hidden": hidden.reshape(-1).tolist(),
            "head": head.reshape(-1).tolist(),
            "cases": cases,
        }
    )
)
