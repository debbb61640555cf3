"""Golden values for limbeck-eval, from scipy, statsmodels and scikit-learn.

Run from the repository root; rewrites eval/tests/golden/*.json:
    python tests/reference/eval_golden.py
Needs numpy, scipy, statsmodels and scikit-learn; the versions used are written into each file.
"""

import json
import math
from pathlib import Path

import numpy as np
import scipy
import sklearn
import statsmodels
from scipy import optimize, stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_score, recall_score
from sklearn.pipeline import FeatureUnion
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

OUT = Path(__file__).resolve().parents[2] / "eval" / "tests" / "golden"
VERSIONS = {m.__name__: m.__version__ for m in (np, scipy, sklearn, statsmodels)}


def write(name, value):
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps({"made_by": VERSIONS, **value}, indent=1) + "\n")


def intervals():
    rows = []
    for k, n in [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (91, 100), (273, 300), (299, 300), (1500, 3080), (3079, 3080)]:
        for confidence in (0.8, 0.95, 0.99):
            wilson = proportion_confint(k, n, alpha=1 - confidence, method="wilson")
            exact = proportion_confint(k, n, alpha=1 - confidence, method="beta")
            rows.append({
                "k": k, "n": n, "confidence": confidence,
                "wilson": [float(x) for x in wilson],
                "clopper_pearson": [0.0 if k == 0 else float(exact[0]), 1.0 if k == n else float(exact[1])],
                "lower": float(stats.beta.ppf(1 - confidence, k, n - k + 1)) if k else 0.0,
                "upper": float(stats.beta.ppf(confidence, k + 1, n - k)) if k < n else 1.0,
            })
    normal = [{"p": p, "quantile": float(stats.norm.ppf(p))} for p in (1e-9, 0.001, 0.05, 0.2, 0.5, 0.8, 0.95, 0.975, 0.9999)]
    binomial = [
        {"k": k, "n": n, "p": p, "cdf": float(stats.binom.cdf(k, n, p))}
        for k, n, p in [(0, 10, 0.1), (5, 10, 0.5), (16, 500, 0.05), (8, 300, 0.05), (1, 500, 0.01), (700, 3080, 0.25), (3079, 3080, 0.999)]
    ]
    write("intervals", {"intervals": rows, "normal": normal, "binomial": binomial})


def restricted_variance(b, c, n, delta):
    """Variance of p_b - p_c at the maximum likelihood under p_b - p_c = delta, by maximising numerically: independent
    of the closed form in the code under test."""

    def loss(q):  # q = p_c, p_b = q + delta
        cells = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
        return -sum(x * math.log(max(p, 1e-300)) for x, p in cells if x > 0)

    low, high = max(0.0, -delta), (1 - delta) / 2
    best = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-14})
    q = min([best.x, low, high], key=loss)
    return (2 * q + delta - delta * delta) / n


def tango_z(b, c, n, delta):
    variance = restricted_variance(b, c, n, delta)
    return ((b - c) / n - delta) / math.sqrt(variance)


def paired():
    rows = []
    for n, b, c in [(300, 12, 14), (300, 0, 0), (300, 5, 0), (300, 0, 5), (200, 1, 1), (500, 40, 10), (500, 10, 40), (1000, 30, 20), (88, 0, 0), (50, 30, 2), (20, 20, 0)]:
        z = []
        for delta in (-0.1, -0.05, -0.03, -0.01, 0.02, 0.1, 0.4):
            z.append({"delta": delta, "z": tango_z(b, c, n, delta)})
        if b + c:
            z.append({"delta": 0.0, "z": (b - c) / math.sqrt(b + c)})
        bounds = {}
        for confidence in (0.95,):
            zq = stats.norm.ppf(0.5 + confidence / 2)
            d = (b - c) / n
            solve = lambda target, low, high: optimize.brentq(lambda x: tango_z(b, c, n, x) - target, low, high, xtol=1e-13)
            bounds["low"] = solve(zq, -1 + 1e-9, d - 1e-9) if d > -1 else -1.0
            bounds["high"] = solve(-zq, d + 1e-9, 1 - 1e-9) if d < 1 else 1.0
        exact = float(mcnemar([[0, b], [c, 0]], exact=True).pvalue) if b + c else 1.0
        rows.append({"n": n, "b": b, "c": c, "mcnemar": exact, "z": z, "interval95": [bounds["low"], bounds["high"]]})
    write("paired", {"paired": rows})


def classification():
    rng = np.random.default_rng(7)
    k, n = 6, 240
    gold = rng.integers(0, k - 1, n)  # the last class has no gold row
    noise = rng.random(n)
    answer = np.where(noise < 0.75, gold, rng.integers(0, k, n))
    answer = np.where(noise > 0.97, -1, answer)  # -1: no valid answer
    present = sorted(set(gold.tolist()))
    matrix = confusion_matrix(gold, answer, labels=list(range(-1, k)))
    logits = rng.normal(size=(n, k)) * 2 + 3.0 * np.eye(k)[gold] * (rng.random((n, 1)) < 0.8)
    posterior = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)

    def temper(t):
        p = np.maximum(posterior.astype(np.float64), 1e-12) ** (1 / t)
        return p / p.sum(1, keepdims=True)

    def scores(t):
        p = temper(t)
        hit = posterior.argmax(1) == gold
        order = np.argsort(p.max(1), kind="stable")
        ece = sum(len(i) / n * abs(hit[i].mean() - p.max(1)[i].mean()) for i in np.array_split(order, 15))
        wrong = (~hit[np.argsort(-p.max(1), kind="stable")]).cumsum() / np.arange(1, n + 1)
        return {
            "ece": float(ece), "brier": float(((p - np.eye(k)[gold]) ** 2).sum(1).mean()),
            "nll": float(log_loss(gold, p, labels=range(k))), "aurc": float(wrong.mean()),
        }

    nll = lambda ln_t: log_loss(gold, temper(math.exp(ln_t)), labels=range(k))
    temperature = math.exp(optimize.minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10}).x)
    times = rng.lognormal(3, 0.5, n)
    write("classification", {
        "labels": k, "gold": gold.tolist(), "answer": answer.tolist(), "posterior": posterior.tolist(),
        "accuracy": float((gold == answer).mean()),
        "macro_f1": float(f1_score(gold, answer, labels=present, average="macro", zero_division=0)),
        "precision": precision_score(gold, answer, labels=present, average=None, zero_division=0).tolist(),
        "recall": recall_score(gold, answer, labels=present, average=None, zero_division=0).tolist(),
        "confusion": matrix[1:, 1:].tolist(), "invalid": matrix[1:, 0].tolist(),
        "raw": scores(1.0), "temperature": temperature, "tempered": scores(temperature),
        "times": times.tolist(),
        "p50": float(np.quantile(times, 0.5, method="inverted_cdf")), "p95": float(np.quantile(times, 0.95, method="inverted_cdf")),
    })


def bootstrap():
    """BCa bounds of macro-F1. scipy resamples rows freely and the code under test within gold classes, so one gold
    class a stratum is imitated by hand; agreement is expected to within the noise of 10,000 resamples."""
    rng = np.random.default_rng(3)
    gold = np.repeat(np.arange(4), 40)
    answer = np.where(rng.random(160) < 0.8, gold, rng.integers(0, 4, 160))
    f1 = lambda y, p: f1_score(y, p, average="macro")
    estimate = f1(gold, answer)
    strata = [np.flatnonzero(gold == k) for k in range(4)]
    draws = []
    for _ in range(10_000):
        rows = np.concatenate([rng.choice(s, len(s)) for s in strata])
        draws.append(f1(gold[rows], answer[rows]))
    draws = np.sort(draws)
    z0 = stats.norm.ppf(((draws < estimate - 1e-12).sum() + 0.5 * (abs(draws - estimate) <= 1e-12).sum()) / len(draws))
    jack = np.array([f1(np.delete(gold, i), np.delete(answer, i)) for i in range(160)])
    dev = jack.mean() - jack
    a = (dev**3).sum() / (6 * (dev**2).sum() ** 1.5)
    bound = lambda p: float(np.quantile(draws, stats.norm.cdf(z0 + (z0 + stats.norm.ppf(p)) / (1 - a * (z0 + stats.norm.ppf(p))))))
    write("bootstrap", {"gold": gold.tolist(), "answer": answer.tolist(), "estimate": float(estimate), "standard_error": float(draws.std(ddof=1)), "lower": bound(0.05), "upper": bound(0.95)})


def floor():
    templates = {
        0: ["my card has not arrived yet", "where is my new card", "the card still isn't here", "when will the card come"],
        1: ["I forgot my PIN", "the pin was blocked", "how do I unblock my pin?", "change my PIN please"],
        2: ["top up failed again", "why was my top-up declined", "the top up did not work", "my top up isn't showing"],
        3: ["exchange rate looks wrong", "what rate do you use abroad", "the rate for euros is too low", "which exchange rate applies"],
    }
    extra = ["", " today", " please help", " since monday", " - this is urgent", " 2 weeks now"]
    train = [(text + e, label) for label, texts in templates.items() for text in texts for e in extra]
    test = ["my card is not here", "pin blocked!!", "topup did not go through", "euro exchange rate?", "Ünïcode card", "", "what is this"]
    texts, labels = [t for t, _ in train], [y for _, y in train]
    union = FeatureUnion([
        ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)),
        ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)),
    ])
    x = union.fit_transform(texts)
    model = LogisticRegression(C=10, tol=1e-9, max_iter=5000).fit(x, labels)
    posterior = model.predict_proba(union.transform(test))
    write("floor", {"train": train, "test": test, "features": int(x.shape[1]), "posterior": posterior.tolist()})


if __name__ == "__main__":
    intervals(), paired(), classification(), bootstrap(), floor()
