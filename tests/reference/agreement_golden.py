"""Golden values for the weight of answers that a teacher was asked for several times: the vote, the share of the draws that
agree, and the weight of a row that nobody reviewed.

Run from the repository root; rewrites data-curation/tests/fixtures/agreement/:
    python tests/reference/agreement_golden.py
Needs nothing but Python. Draws that failed the verifiers are null: they count as draws and against every answer.
"""

import json
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "data-curation" / "tests" / "fixtures" / "agreement"
LABELS = ["card", "cash", "rate"]
WEIGHT = Fraction(3, 10)
SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "ru", "sa", "te", "vi", "wo", "zu", "pe"]


def vote(draws):
    """Most frequent answer, of two the one that comes first; its share of all draws, failed ones among them."""
    counts = Counter(d for d in draws if d is not None)
    if not counts:
        return None, Fraction(0)
    most = max(counts.values())
    return next(d for d in draws if d is not None and counts[d] == most), Fraction(most, len(draws))


def main():
    rng = random.Random(11)
    traces, cases = [], []
    for i in range(120):
        n = rng.choice([1, 2, 3, 5, 8])
        sure = rng.choice([0.4, 0.7, 0.95])
        own = rng.choice(LABELS)
        draws = [own if rng.random() < sure else rng.choice([*LABELS, None]) for _ in range(n)]
        answer, agreement = vote(draws)
        if answer is None:
            continue
        # One draw agrees with itself, and so it takes nothing away.
        weight = WEIGHT * (agreement if n > 1 else 1)
        text = " ".join("".join(rng.choice(SYLLABLES) for _ in range(3)) for _ in range(9))
        cases.append({"id": f"t{i}", "draws": draws, "answer": answer, "agreement": float(agreement), "weight": float(weight)})
        traces.append({
            "id": f"t{i}", "customer": f"c{i}",
            "request": {"messages": [{"role": "user", "content": text}]},
            "response": {"model": "m", "choices": [{"message": {"role": "assistant", "content": answer}}]},
            "limbeck_teacher": {"draws": n, "agreement": float(agreement)},
        })
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "traces.jsonl").write_text("".join(json.dumps(t) + "\n" for t in traces))
    (OUT / "golden.json").write_text(json.dumps({"weight": float(WEIGHT), "labels": LABELS, "rows": cases}, separators=(",", ":")) + "\n")


main()
