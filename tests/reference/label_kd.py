"""Golden values of distillation over labels: the exact posterior over a label trie, five divergences, temperatures, weights;
the loss and its gradients by the hidden states and by the head, from PyTorch in float64. Then the same where rows tell only some
labels apart: each label's softened probability, the student's mass within an outcome divided as the teacher's, summed by outcome.

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
# Rows that compute some of the forks alone, by the path that each comes after; one teacher rules a whole outcome out.
FORKS = [(), (1,), (1, 2)]
COARSE = [[0], [0], [0, 1]]
coarse_teacher = teacher.clone()
coarse_teacher[1] = torch.tensor([0.0, 0.0, 0.9, 0.0, 0.1])


def log_posterior(x, w, root, nodes, forks=(0, 1, 2)):
    """By following each label's tokens down the tree, over some of the forks."""
    at = {(): root, (1,): nodes, (1, 2): nodes + 1}
    out = []
    for label in LABELS:
        total = torch.zeros(())
        for depth in range(len(label)):
            path = tuple(label[:depth])
            children = sorted({other[depth] for other in LABELS if tuple(other[:depth]) == path and len(other) > depth})
            if len(children) > 1 and FORKS.index(path) in forks:
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

def outcomes(forks):
    """Labels that take the same turns at these forks."""
    turns = {}
    for i, label in enumerate(LABELS):
        taken = tuple(tuple(label[: len(FORKS[f]) + 1]) for f in forks if tuple(label[: len(FORKS[f])]) == FORKS[f])
        turns.setdefault(taken, []).append(i)
    return list(turns.values())


def softened_by_outcome(p, log_q, forks, temperature):
    """Both sides label by label, then summed: a student's outcome is divided among its labels as the teacher divides it."""
    mass = log_q.exp()
    q = torch.zeros(len(LABELS))
    for members in outcomes(forks):
        told = p[members].sum()
        share = p[members] / told if told > 0 else torch.full((len(members),), 1 / len(members))
        q = q.index_add(0, torch.tensor(members), mass[members[0]] * share)
    soft = [(x.clamp(min=1e-300) ** (1 / temperature)) * (x > 0) for x in (p, q)]
    return [torch.stack([(x / x.sum())[members].sum() for members in outcomes(forks)]) for x in soft]


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

coarse = []
for name, divergence in DIVERGENCES.items():
    for temperature in (1.0, 2.0):
        x, w = hidden.double().requires_grad_(), head.double().requires_grad_()
        loss = torch.zeros(())
        for (root, nodes, weight), p, forks in zip(rows, coarse_teacher.double(), COARSE):
            p_t, q_t = softened_by_outcome(p / p.sum(), log_posterior(x, w, root, nodes, forks), forks, temperature)
            loss = loss + weight * temperature**2 * divergence(p_t, q_t)
        loss = loss / DENOMINATOR
        loss.backward()
        coarse.append(
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
            "forks": COARSE,
            "coarse_teacher": coarse_teacher.tolist(),
            "coarse": coarse,
        }
    )
)
