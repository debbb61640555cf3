"""Golden values for written texts and rankings, by rouge-score and scikit-learn.

Run from the repository root; rewrites eval/tests/golden/texts.json:
    python tests/reference/texts_golden.py
Needs rouge-score and scikit-learn.
"""

import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rouge_score import rouge_scorer
from sklearn.metrics import ndcg_score

OUT = Path(__file__).resolve().parents[2] / "eval" / "tests" / "golden" / "texts.json"
WORDS = "the cat sat on a mat and looked at its bowl while rain fell U.S. don't 3.5 naïve CAT --".split()


def rouge(rng):
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    cases = [["", ""], ["a", ""], ["The cat!", "the CAT"], ["a b c d", "d c b a"], ["--", "--"]]
    for _ in range(60):
        target = [rng.choice(WORDS) for _ in range(rng.randint(0, 30))]
        said = [w for w in target if rng.random() < 0.7] + [rng.choice(WORDS) for _ in range(rng.randint(0, 6))]
        if rng.random() < 0.3:
            rng.shuffle(said)
        cases.append([" ".join(target), " ".join(said)])
    rows = []
    for target, said in cases:
        score = scorer.score(target, said)["rougeL"]
        rows.append({"target": target, "said": said, "precision": score.precision, "recall": score.recall, "f1": score.fmeasure})
    return rows


def ranking(rng):
    rows = []
    for _ in range(60):
        n = rng.randint(2, 20)
        relevance = [rng.choice([0, 0, 0, 1, 2, 3]) for _ in range(n)]
        order = list(range(n))
        rng.shuffle(order)
        scores = [0.0] * n
        for place, item in enumerate(order):
            scores[item] = float(n - place)
        k = rng.randint(1, n)
        ndcg = ndcg_score(np.array([relevance]), np.array([scores]), k=k, ignore_ties=True)
        relevant = sum(r > 0 for r in relevance)
        found = sum(relevance[i] > 0 for i in order[:k])
        rows.append({"ranked": [relevance[i] for i in order], "k": k, "ndcg": ndcg,
                     "recall": found / relevant if relevant else None})
    return rows


def main():
    rng = random.Random(17)
    made_by = f"rouge-score {version('rouge-score')}, scikit-learn {version('scikit-learn')}"
    OUT.write_text(json.dumps({"made_by": made_by, "rouge_l": rouge(rng), "ranking": ranking(rng)}, indent=1) + "\n")


main()
