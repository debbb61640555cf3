"""Golden values of hidden-state matching: the weighted sum over tokens of three distances between a student's states and a teacher's, with and
without a linear map between their widths, and the gradients by states and map, from PyTorch in float64.

    pip install torch && python tests/reference/hidden_states.py > trainer/tests/hidden_states.json

Mean squared error over the width (FitNets, TinyBERT), the same over the teacher's mean square, one minus the cosine (DistilBERT's
CosineEmbeddingLoss), each from PyTorch's own loss functions.
"""

import json

import torch
from torch.nn import functional as F

torch.manual_seed(17)
torch.set_default_dtype(torch.float64)
TOKENS, WIDTH, WIDER = 7, 6, 9
SCALE = 0.75

hidden = torch.randn(TOKENS, WIDTH).float()
map_ = (torch.randn(WIDER, WIDTH) / 2).float()
same = torch.randn(TOKENS, WIDTH).float()
wider = torch.randn(TOKENS, WIDER).float()
# A first token as models have it, and one that is matched already.
same[0] *= 300
wider[0] *= 300
same[3] = hidden[3]
weights = [3.0, 3.0, 1.0, 1.0, 1.0, 0.5, 1.0]
total = sum(weights)
weights = [w / total for w in weights]

LOSSES = {
    "mse": lambda s, t: F.mse_loss(s, t),
    "relative": lambda s, t: F.mse_loss(s, t) / F.mse_loss(t, torch.zeros_like(t)),
    "cosine": lambda s, t: F.cosine_embedding_loss(s[None], t[None], torch.ones(1)),
}

cases = []
for name, loss in LOSSES.items():
    for mapped in (False, True):
        h = hidden.double().clone().requires_grad_()
        m = map_.double().clone().requires_grad_()
        teacher = (wider if mapped else same).double()
        states = h @ m.T if mapped else h
        value = sum(w * loss(s, t) for w, s, t in zip(weights, states, teacher))
        (SCALE * value).backward()
        cases.append(
            {
                "loss": name,
                "mapped": mapped,
                "value": value.item(),
                "by_hidden": h.grad.flatten().tolist(),
                "by_map": m.grad.flatten().tolist() if mapped else [],
            }
        )

print(
    json.dumps(
        {
            "tokens": TOKENS,
            "width": WIDTH,
            "wider": WIDER,
            "scale": SCALE,
            "hidden": hidden.flatten().tolist(),
            "map": map_.flatten().tolist(),
            "same": same.flatten().tolist(),
            "teacher": wider.flatten().tolist(),
            "weights": weights,
            "cases": cases,
        },
        indent=1,
    )
)
