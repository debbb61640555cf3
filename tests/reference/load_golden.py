#!/usr/bin/env python3
"""Ranks between which a quantile lies, and Student's t, by scipy: the numbers in eval/src/load.rs.

    pip install scipy && python tests/reference/load_golden.py
"""

from scipy.stats import binom, t

for p, n in [(0.95, 1000), (0.99, 1000), (0.5, 100), (0.95, 40)]:
    tail = 0.025
    low = max((r for r in range(1, n + 1) if binom.cdf(r - 1, n, p) <= tail), default=None)
    high = min((r for r in range(1, n + 1) if binom.cdf(r - 1, n, p) >= 1 - tail), default=None)
    print(f"p {p}, n {n}: ranks {low} to {high}")
print(f"t of 29 degrees of freedom at 0.975: {t.ppf(0.975, 29)!r}")
