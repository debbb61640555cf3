"""Golden values for the review room, from cleanlab, scikit-learn and krippendorff.

Run from the repository root; rewrites data-curation/src/review/golden/*.json:
    python tests/reference/review_golden.py
Needs numpy, scikit-learn, cleanlab and krippendorff; the versions used are written into each file.
"""

import json
from importlib.metadata import version
from pathlib import Path

import krippendorff
import numpy as np
from cleanlab.count import compute_confident_joint
from cleanlab.rank import get_self_confidence_for_each_label
from sklearn.metrics import cohen_kappa_score

OUT = Path(__file__).resolve().parents[2] / "data-curation" / "src" / "review" / "golden"
VERSIONS = {name: version(name) for name in ("numpy", "scikit-learn", "cleanlab", "krippendorff")}


def write(name, value):
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps({"made_by": VERSIONS, **value}, separators=(",", ":")) + "\n")


def noise():
    rng = np.random.default_rng(5)
    cases = []
    for name, n, k, flip, sharp in [("few classes", 120, 3, 0.15, 4.0), ("many classes", 160, 8, 0.3, 3.0), ("clean and sure", 60, 4, 0.0, 9.0)]:
        truth = rng.permutation(np.arange(n) % k)
        given = np.where(rng.random(n) < flip, rng.integers(0, k, n), truth)
        logits = rng.normal(size=(n, k)) + sharp * np.eye(k)[truth]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p = np.round(p, 5)
        _, suspects = compute_confident_joint(given, p, calibrate=False, return_indices_of_off_diagonals=True)
        confidence = get_self_confidence_for_each_label(given, p)
        cases.append({
            "name": name,
            "given": given.tolist(),
            "posteriors": p.tolist(),
            "suspects": sorted(int(i) for i in suspects),
            "self_confidence": np.round(confidence, 7).tolist(),
        })
    write("noise", {"cases": cases})


def agreement():
    rng = np.random.default_rng(6)
    kappa, alpha = [], []
    for n, k, noise_share in [(2, 2, 0.5), (30, 3, 0.2), (200, 77, 0.1), (50, 2, 1.0), (8, 2, 0.0)]:
        a = rng.integers(0, k, n)
        b = np.where(rng.random(n) < noise_share, rng.integers(0, k, n), a)
        value = cohen_kappa_score(a, b)
        kappa.append({"a": a.tolist(), "b": b.tolist(), "kappa": None if np.isnan(value) else float(value)})
    kappa.append({"a": [1, 1, 1], "b": [1, 1, 1], "kappa": None})
    for raters, n, k, missing, noise_share in [(2, 20, 3, 0.0, 0.2), (4, 40, 5, 0.4, 0.3), (3, 100, 12, 0.6, 0.1), (5, 12, 2, 0.2, 1.0)]:
        truth = rng.integers(0, k, n)
        table = np.where(rng.random((raters, n)) < noise_share, rng.integers(0, k, (raters, n)), truth).astype(float)
        table[rng.random((raters, n)) < missing] = np.nan
        units = [[int(v) for v in column if not np.isnan(v)] for column in table.T]
        value = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
        alpha.append({"units": units, "alpha": float(value)})
    write("agreement", {"kappa": kappa, "alpha": alpha})


if __name__ == "__main__":
    noise()
    agreement()
