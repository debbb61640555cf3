"""Golden values of attention matching: rotated queries and keys of a packed batch (a shared prefix, a chain, a row that ends in a tree), grouped
heads, a soft cap, a window; the KL divergence of a student's attention weights from a teacher's, head by head or of the heads' mean, and its
gradients by queries and keys, from PyTorch in float64.

    pip install torch && python tests/reference/attention_rows.py > model/tests/golden/attention_rows.json
"""

import json

import torch
from torch.nn import functional as F


def short(x):
    """Nine digits are a float32 to the bit."""
    return [float(f"{v:.9g}") for v in x.flatten().tolist()]


torch.manual_seed(29)
torch.set_default_dtype(torch.float64)
D, THETA, SCALE = 8, 10000.0, 0.6
# Prefix 0 1 2; the chain 3 4 5; the row 6 7 and behind it the branches 8 9 and 10.
N = 11
POSITIONS = [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 5]
PARENTS = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 2, 7: 6, 8: 7, 9: 8, 10: 7}


def visible(window):
    seen = torch.zeros(N, N, dtype=torch.bool)
    for i in range(N):
        j = i
        while j is not None:
            seen[i, j] = window is None or POSITIONS[i] - POSITIONS[j] < window
            j = PARENTS.get(j)
    return seen


def rotated(x):
    half = D // 2
    angle = torch.tensor(POSITIONS)[:, None] * THETA ** (-torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def log_rows(q, k, heads, kv_heads, cap, window):
    """[heads, N, N]"""
    q, k = rotated(q.view(N, heads, D)), rotated(k.view(N, kv_heads, D))
    k = k.repeat_interleave(heads // kv_heads, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * SCALE
    if cap:
        scores = cap * torch.tanh(scores / cap)
    return F.log_softmax(scores.masked_fill(~visible(window), float("-inf")), -1)


cases = []
for heads, kv_heads, teacher_heads, cap, window in [
    (4, 2, 4, None, None),
    (4, 2, 4, 1.5, 4),
    (2, 1, 4, None, None),
    (4, 4, 2, 2.0, None),
]:
    q = (1.5 * torch.randn(N, heads * D)).float()
    k = torch.randn(N, kv_heads * D).float()
    tq, tk = (1.5 * torch.randn(N, teacher_heads * D)).float(), torch.randn(N, teacher_heads * D).float()
    weights = torch.rand(N)
    a, b = q.double().requires_grad_(), k.double().requires_grad_()
    student = log_rows(a, b, heads, kv_heads, cap, window)
    teacher = log_rows(tq.double(), tk.double(), teacher_heads, teacher_heads, cap, window)
    value = 0
    for i in range(N):
        see = visible(window)[i]
        s, t = student[:, i, see], teacher[:, i, see]
        if heads != teacher_heads:
            s, t = s.exp().mean(0, keepdim=True).log(), t.exp().mean(0, keepdim=True).log()
        value = value + weights[i] * F.kl_div(s, t, log_target=True, reduction="sum") / s.shape[0]
    (0.5 * value).backward()
    cases.append(
        {
            "heads": [heads, kv_heads],
            "teacher_heads": teacher_heads,
            "cap": cap,
            "window": window,
            "q": short(q),
            "k": short(k),
            "teacher_q": short(tq),
            "teacher_k": short(tk),
            "weights": weights.tolist(),
            "value": value.item(),
            "by_q": short(a.grad),
            "by_k": short(b.grad),
        }
    )
print(json.dumps({"head_dim": D, "theta": THETA, "scale": SCALE, "cases": cases}))
