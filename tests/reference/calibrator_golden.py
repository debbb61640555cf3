"""Golden values for Platt scaling and isotonic regression, by scikit-learn.

Run from the repository root; rewrites eval/tests/golden/calibrator.json:
    python tests/reference/calibrator_golden.py
Needs numpy, scipy and scikit-learn.
"""

import json
from pathlib import Path

import numpy as np
import scipy
import sklearn
from scipy import optimize
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

OUT = Path(__file__).resolve().parents[2] / "eval" / "tests" / "golden" / "calibrator.json"


def platt(scores, right):
    """Platt's objective minimised by scipy to the last digit; scikit-learn's own fit, which stops earlier, must be near."""
    x = np.log(scores / (1 - scores))
    positive = right.sum()
    t = np.where(right, (positive + 1) / (positive + 2), 1 / (len(right) - positive + 2))
    loss = lambda w: np.logaddexp(0, w[0] * x + w[1]).sum() - (t * (w[0] * x + w[1])).sum()
    best = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20000})
    theirs = _SigmoidCalibration().fit(x, right.astype(float))
    assert abs(-theirs.a_ - best.x[0]) < 2e-2 and abs(-theirs.b_ - best.x[1]) < 2e-2, (theirs.a_, theirs.b_, best.x)
    return [float(w) for w in best.x]


def main():
    rng = np.random.default_rng(5)
    cases = []
    for n, digits, power in [(300, 6, 2.0), (120, 1, 1.0), (200, 4, 0.3)]:
        scores = np.clip(np.round(0.25 + 0.74 * rng.random(n), digits), 0.001, 0.999)
        right = rng.random(n) < scores**power
        at = np.concatenate([[0.0, 1.0], scores[:20], rng.random(40)])
        curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, right.astype(float))
        cases.append({
            "scores": scores.tolist(), "right": right.tolist(), "platt": platt(scores, right),
            "at": at.tolist(), "isotonic": curve.predict(at).tolist(),
        })
    golden = {"made_by": {m.__name__: m.__version__ for m in (np, scipy, sklearn)}, "cases": cases}
    OUT.write_text(json.dumps(golden) + "\n")
    print([case["platt"] for case in cases])


main()
