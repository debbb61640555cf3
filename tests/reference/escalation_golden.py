"""Golden values for the escalation certificate: Learn then Test with a fixed sequence, by scipy's binomial.

Run from the repository root; rewrites eval/tests/golden/escalation.json:
    python tests/reference/escalation_golden.py
Needs numpy and scipy.
"""

import json
import math
from pathlib import Path

import numpy as np
import scipy
from scipy import stats

OUT = Path(__file__).resolve().parents[2] / "eval" / "tests" / "golden" / "escalation.json"
THRESHOLDS = 50
START, LATEST, EARLIEST = 2.0, 0.4, 1.1


def certify(calibration, unlabelled, alpha, delta):
    """calibration: (score or None, right); unlabelled: score or None. Written from the description, not from the code."""
    n = len(unlabelled)
    known = sorted((s for s in unlabelled if s is not None), reverse=True)
    grid = []
    for i in range(1, THRESHOLDS + 1):
        rank = min(math.ceil(i * n / THRESHOLDS), len(known))
        if rank and known[rank - 1] not in grid:
            grid.append(known[rank - 1])
    coverage = [sum(s >= t for s in known) / n for t in grid]
    least = math.ceil(math.log(delta) / math.log(1 - alpha))
    expected = max(min(START * least, LATEST * len(calibration)), EARLIEST * least)
    start = next((i for i, c in enumerate(coverage) if c * len(calibration) >= expected), len(grid) - 1)
    steps, chosen = [], None
    for t in grid[max(start, 0):]:
        accepted = [right for s, right in calibration if s is not None and s >= t]
        errors = sum(not r for r in accepted)
        p = float(stats.binom.cdf(errors, len(accepted), alpha)) if accepted else 1.0
        steps.append({"threshold": t, "accepted": len(accepted), "errors": errors, "p": p})
        if p > delta:
            break
        chosen = steps[-1]
    upper = None
    if chosen:
        k, m = chosen["errors"], chosen["accepted"]
        upper = float(stats.beta.ppf(1 - delta, k + 1, m - k))
    return {"least": least, "candidates": len(grid), "steps": steps, "threshold": chosen and chosen["threshold"], "upper": upper}


def needed(rate, alpha, delta, power):
    """Fewest accepted rows with which the rate is certified with this power, where letting through one error more or less is
    all that changes: by trying every number of rows."""
    for rows in range(1, 5000):
        allowed = int(stats.binom.ppf(delta, rows, alpha))
        while allowed >= 0 and stats.binom.cdf(allowed, rows, alpha) > delta:
            allowed -= 1
        if allowed >= 0 and stats.binom.cdf(allowed, rows, rate) >= power:
            return rows


def main():
    rng = np.random.default_rng(11)
    cases = []
    for n, m, alpha, delta, worst, invalid, digits in [
        (500, 400, 0.05, 0.05, 0.9, 0.0, 4),
        (500, 400, 0.05, 0.05, 0.7, 0.1, 2),  # ties, and answers that are not valid
        (300, 50, 0.10, 0.05, 0.9, 0.0, 4),
        (80, 200, 0.05, 0.05, 0.02, 0.0, 4),  # too few to start before the end
        (40, 200, 0.05, 0.05, 0.0, 0.0, 4),  # nothing can be certified
        (900, 700, 0.02, 0.10, 0.4, 0.02, 4),
        (300, 300, 0.05, 0.05, 4.0, 0.0, 3),
        (130, 300, 0.05, 0.05, 0.6, 0.0, 3),  # few: the start moves forward
    ]:
        def draw(count):
            scores = np.round(rng.beta(5, 1.2, count), digits)
            right = rng.random(count) >= worst * (1 - scores) ** 1.5
            keep = rng.random(count) >= invalid
            return [(float(s) if k else None, bool(r and k)) for s, r, k in zip(scores, right, keep)]

        calibration, unlabelled = draw(n), [s for s, _ in draw(m)]
        cases.append({
            "calibration": calibration, "unlabelled": unlabelled, "max_error": alpha, "confidence": 1 - delta,
            **certify(calibration, unlabelled, alpha, delta),
        })
    rows = [
        {"rate": rate, "max_error": alpha, "confidence": 1 - delta, "power": power, "rows": needed(rate, alpha, delta, power)}
        for rate, alpha, delta, power in [
            (0.0, 0.05, 0.05, 0.8), (0.005, 0.05, 0.05, 0.8), (0.01, 0.05, 0.05, 0.8), (0.02, 0.05, 0.05, 0.9),
            (0.03, 0.05, 0.05, 0.8), (0.005, 0.02, 0.1, 0.8),
        ]
    ]
    golden = {"made_by": {m.__name__: m.__version__ for m in (np, scipy)}, "cases": cases, "needed": rows}
    OUT.write_text(json.dumps(golden) + "\n")
    for case in cases:
        print(len(case["steps"]), "steps,", case["threshold"], case["upper"])
    print(rows)


main()
