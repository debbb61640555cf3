"""Golden values for field extraction, by scipy's linear_sum_assignment.

Run from the repository root; rewrites eval/tests/golden/extraction.json:
    python tests/reference/extraction_golden.py
Needs numpy and scipy.
"""

import json
import random
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import linear_sum_assignment

OUT = Path(__file__).resolve().parents[2] / "eval" / "tests" / "golden" / "extraction.json"
SCHEMA = {
    "type": "object",
    "properties": {
        "date": {"type": "string"},
        "time": {"type": "string"},
        "people": {"type": "integer"},
        "area": {"enum": ["inside", "Outside"]},
        "dishes": {"type": "array", "items": {"type": "string"}},
    },
    "additionalProperties": False,
}
TEXTS = ["Friday", " friday ", "next  week", "Next Week", "6 pm", "6 PM", "noon"]
DISHES = ["soup", "Soup", "fish", "rice ", "rice"]


def draw(rng):
    answer = {}
    for name in ["date", "time"]:
        if rng.random() < 0.6:
            answer[name] = rng.choice(TEXTS)
    if rng.random() < 0.5:
        answer["people"] = rng.choice([2, 2.0, 3])
    if rng.random() < 0.5:
        answer["area"] = rng.choice(["inside", "Outside"])
    if rng.random() < 0.7:
        answer["dishes"] = [rng.choice(DISHES) for _ in range(rng.randrange(5))]
    return answer


def fold(name, value):
    if isinstance(value, str):
        return value if name == "area" else " ".join(value.split()).lower()
    return float(value)


def values(answer, name):
    value = (answer or {}).get(name)
    if value is None:
        return []
    return [fold(name, v) for v in (value if isinstance(value, list) else [value])]


def count(gold, given):
    """The assignment with the most equal pairs; pairs that are not equal are wrong, the rest is missing or made up."""
    if not gold or not given:
        return [0, 0, len(gold), len(given)]
    equal = np.array([[1.0 if g == a else 0.0 for a in given] for g in gold])
    rows, columns = linear_sum_assignment(equal, maximize=True)
    correct = int(equal[rows, columns].sum())
    return [correct, len(rows) - correct, len(gold) - len(rows), len(given) - len(columns)]


def rate(part, whole):
    return part / whole if whole else None


def scored(counts):
    correct, wrong, missing, hallucinated = counts
    answered, gold = correct + wrong + hallucinated, correct + wrong + missing
    precision, recall = rate(correct, answered), rate(correct, gold)
    if gold + answered == 0:
        f1 = None
    elif not precision or not recall:
        f1 = 0.0
    else:
        f1 = 2 * precision * recall / (precision + recall)
    return {"counts": counts, "precision": precision, "recall": recall, "f1": f1}


def case(seed, n, keep):
    rng = random.Random(seed)
    gold = [draw(rng) for _ in range(n)]
    answers = [None if rng.random() < 0.1 else (dict(g) if rng.random() < keep else draw(rng)) for g in gold]
    names = list(SCHEMA["properties"])
    by_field = [np.sum([count(values(g, f), values(a, f)) for g, a in zip(gold, answers)], axis=0) for f in names]
    fields = [scored([int(c) for c in counts]) for counts in [*by_field, np.sum(by_field, axis=0)]]
    f1s = [f["f1"] for f in fields[:-1] if sum(f["counts"][:3]) > 0]
    same = lambda g, a: a is not None and all(sorted(map(str, values(g, f))) == sorted(map(str, values(a, f))) for f in names)
    return {
        "gold": gold,
        "answers": answers,
        "fields": fields,
        "macro_f1": float(np.mean(f1s)),
        "validity": sum(a is not None for a in answers) / n,
        "exact": sum(same(g, a) for g, a in zip(gold, answers)),
    }




cases = [case(seed, n, keep) for seed, n, keep in [(1, 12, 0.5), (2, 20, 0.0), (3, 25, 0.9)]]
made_by = {m.__name__: m.__version__ for m in (np, scipy)}
OUT.write_text(json.dumps({"made_by": made_by, "schema": json.dumps(SCHEMA), "cases": cases}, indent=1) + "\n")
