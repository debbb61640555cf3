"""Golden values for slices and drift: BH, Holm, binomial tests, KS, PSI, BBSE, cluster bootstrap, by scipy, statsmodels, numpy.

Run from the repository root; rewrites eval/tests/golden/drift.json:
    python tests/reference/drift_golden.py
Needs numpy, scipy and statsmodels.
"""

import json
from pathlib import Path

import numpy as np
import scipy
import statsmodels
from scipy import stats
from statsmodels.stats.multitest import multipletests

OUT = Path(__file__).resolve().parents[2] / "eval" / "tests" / "golden" / "drift.json"


def psi(expected, actual):
    e, a = np.asarray(expected) + 0.5, np.asarray(actual) + 0.5
    e, a = e / e.sum(), a / a.sum()
    return float(((a - e) * np.log(a / e)).sum())


def score_psi(before, after):
    """Tenths of the reference: an edge is the smallest score that a share i/10 of it does not exceed."""
    edges = np.unique(np.quantile(before, np.arange(1, 10) / 10, method="inverted_cdf"))
    count = lambda x: np.bincount(np.searchsorted(edges, x, side="left"), minlength=len(edges) + 1)
    return psi(count(before), count(after))


def main():
    rng = np.random.default_rng(3)
    p_lists = [sorted(rng.random(12)), [0.001, 0.2, 0.008, 0.04, 0.039, 0.9, 0.041], [0.5], [0.01, 0.01, 0.01], list(rng.beta(0.3, 2, 30))]
    multiple = [
        {"p": [float(x) for x in p], "bh": [bool(x) for x in multipletests(p, alpha=0.1, method="fdr_bh")[0]],
         "holm": [float(x) for x in multipletests(p, method="holm")[1]]}
        for p in p_lists
    ]
    worse = [
        {"wrong": k, "rows": n, "error": p, "p": float(stats.binomtest(k, n, p, alternative="greater").pvalue)}
        for k, n, p in [(9, 44, 0.07), (0, 30, 0.1), (30, 30, 0.1), (5, 100, 0.05), (12, 40, 0.125)]
    ]
    samples = []
    for n, m, shift, digits in [(200, 150, 0.0, 6), (200, 150, 0.8, 6), (1000, 300, 0.3, 2), (30, 500, -0.5, 1)]:
        before = np.sort(np.round(stats.beta.rvs(6, 1.5, size=n, random_state=rng), digits))
        after = np.sort(np.round(stats.beta.rvs(6, 1.5 + shift, size=m, random_state=rng), digits))
        samples.append({
            "before": before.tolist(), "after": after.tolist(),
            "ks": float(stats.ks_2samp(before, after).statistic), "psi": score_psi(before, after),
        })
    # Label shift: a classifier whose confusions stay and whose labels move.
    k = 4
    confusion = np.array([[80, 10, 5, 5], [6, 90, 2, 2], [3, 3, 44, 0], [8, 1, 1, 40]])
    total = confusion.sum()
    joint = confusion.T / total
    moved = np.array([0.1, 0.2, 0.5, 0.2])
    answered = (confusion / confusion.sum(1, keepdims=True)).T @ moved
    weights = np.linalg.solve(joint, answered)
    now = weights * confusion.sum(1) / total
    recall = np.diag(confusion) / confusion.sum(1)
    bbse = {
        "confusion": confusion.tolist(), "answered": answered.tolist(), "moved": moved.tolist(), "now": now.tolist(),
        "expected_accuracy": float((moved * recall).sum()), "accuracy": float(np.diag(confusion).sum() / total),
        "condition": float(np.linalg.cond(joint, 1)),
    }
    # Cluster bootstrap of a paired difference: BCa over groups, by scipy.
    groups = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    effect = rng.normal(0, 0.35, 40)[groups]
    first = rng.random(len(groups)) < np.clip(0.85 + effect * 0.3, 0, 1)
    second = rng.random(len(groups)) < np.clip(0.8 - effect * 0.3, 0, 1)
    sums = np.array([[(first[groups == g].astype(int) - second[groups == g]).sum(), (groups == g).sum()] for g in range(40)], float)
    result = stats.bootstrap(
        (np.arange(40),), lambda i: sums[i.astype(int), 0].sum(-1) / sums[i.astype(int), 1].sum(-1), n_resamples=40_000,
        confidence_level=0.95, method="BCa", vectorized=False, random_state=1,
    ).confidence_interval
    cluster = {
        "groups": [f"g{g}" for g in groups], "first": first.tolist(), "second": second.tolist(),
        "difference": float(sums[:, 0].sum() / sums[:, 1].sum()), "low": float(result.low), "high": float(result.high),
    }
    golden = {
        "made_by": {m.__name__: m.__version__ for m in (np, scipy, statsmodels)}, "multiple": multiple, "worse": worse,
        "samples": samples, "bbse": bbse, "cluster": cluster,
    }
    OUT.write_text(json.dumps(golden) + "\n")
    print(bbse, cluster["difference"], cluster["low"], cluster["high"], [(s["ks"], s["psi"]) for s in samples])


main()
