"""Golden values of the trainer, from transformers (schedules) and PEFT (LoRA+ groups and steps, scaling, dropout's place).

    pip install torch transformers peft && python tests/reference/trainer_golden.py > trainer/tests/golden.json
"""

import json

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import get_scheduler
from transformers.optimization import get_wsd_schedule

TOTAL, WARMUP = 50, 6


def schedules():
    """Factor of every step, 0 to 51, as the scheduler's lambda gives it."""

    def factors(make):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler = make(optimizer)
        out = []
        for _ in range(TOTAL + 2):
            out.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return out

    plain = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    found = {
        ours: factors(lambda o, name=name: get_scheduler(name, o, num_warmup_steps=WARMUP, num_training_steps=TOTAL))
        for ours, name in plain.items()
    }
    for decay in ["cosine", "linear", "1-sqrt"]:
        found[f"wsd {decay}"] = factors(
            lambda o, decay=decay: get_wsd_schedule(
                o, num_warmup_steps=WARMUP, num_decay_steps=10, num_training_steps=TOTAL, decay_type=decay
            )
        )
    return {"total_steps": TOTAL, "warmup_steps": WARMUP, "decay_steps": 10, "factors": found}


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.q_proj(x)


def loraplus():
    """Values after three steps with given gradients, of both factors and of DoRA's magnitude vector."""
    torch.manual_seed(3)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False, use_dora=True)
    model = get_peft_model(Tiny(), lora)
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1, eps=1e-8
    )
    out = {"learning_rate": 0.01, "loraplus_lr_ratio": 16.0, "weight_decay": 0.1, "factors": {}}
    factors = {n.split(".")[-3]: p for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(5)
    grads = {n: [torch.randn(p.shape, generator=generator) for _ in range(3)] for n, p in factors.items()}
    for name, parameter in factors.items():
        group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        out["factors"][name] = {
            "group_lr": group["lr"],
            "group_weight_decay": group["weight_decay"],
            "start": parameter.detach().flatten().tolist(),
            "grads": [g.flatten().tolist() for g in grads[name]],
        }
    for step in range(3):
        for name, parameter in factors.items():
            parameter.grad = grads[name][step].clone()
        optimizer.step()
    for name, parameter in factors.items():
        out["factors"][name]["end"] = parameter.detach().flatten().tolist()
    return out


def scalings():
    out = []
    for r, alpha, rslora in [(16, 32, False), (16, 32, True), (8, 16, True), (4, 1, True)]:
        model = get_peft_model(Tiny(), LoraConfig(r=r, lora_alpha=alpha, use_rslora=rslora, target_modules=["q_proj"]))
        scaling = model.base_model.model.q_proj.scaling["default"]
        out.append({"r": r, "lora_alpha": alpha, "use_rslora": rslora, "scaling": scaling})
    return out


if __name__ == "__main__":
    print(json.dumps({"schedules": schedules(), "loraplus": loraplus(), "scalings": scalings()}, indent=1))
