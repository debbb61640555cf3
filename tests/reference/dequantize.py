#!/usr/bin/env python3
"""Golden values for model/tests/dequantize.rs: what ggml makes of pseudo-random blocks of each type.

usage: dequantize.py ../../model/tests/golden/dequantize.json      (needs: pip install xllamacpp gguf numpy)

Bytes come from splitmix64, so that the file holds only digests of the decoded f32 values and the first 32 of them. The
values are ggml's own (dequantize_row_* inside xllamacpp's shared library) and must equal PyPI gguf's, a second
implementation, bit for bit; the script fails where they don't.
"""

import ctypes
import hashlib
import json
import sys

import gguf
import numpy as np
import xllamacpp.xllamacpp as library

GGML = ctypes.CDLL(library.__file__)
BLOCKS = 64
# Type: (ggml's function, values a block, bytes a block, where in a block a float's high byte lies).
TYPES = {
    "F32": (None, 1, 4, [3]),
    "F16": (None, 1, 2, [1]),
    "BF16": (None, 1, 2, [1]),
    "Q4_0": ("q4_0", 32, 18, [1]),
    "Q4_1": ("q4_1", 32, 20, [1, 3]),
    "Q5_0": ("q5_0", 32, 22, [1]),
    "Q5_1": ("q5_1", 32, 24, [1, 3]),
    "Q8_0": ("q8_0", 32, 34, [1]),
    "Q4_K": ("q4_K", 256, 144, [1, 3]),
    "Q5_K": ("q5_K", 256, 176, [1, 3]),
    "Q6_K": ("q6_K", 256, 210, [209]),
    "IQ4_NL": ("iq4_nl", 32, 18, [1]),
}


def splitmix64(seed, n):
    mask = (1 << 64) - 1
    for _ in range(n):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield (z ^ (z >> 31)) >> 56


def blocks(seed, n_bytes, block_bytes, high_bytes):
    data = np.fromiter(splitmix64(seed, n_bytes), np.uint8, n_bytes).reshape(-1, block_bytes)
    for at in high_bytes:  # the top bit of the exponent is cleared: always finite
        data[:, at] &= 0xBF
    return np.ascontiguousarray(data).reshape(-1)


def ggml(function, data, n):
    out = np.zeros(n, np.float32)
    row = getattr(GGML, f"dequantize_row_{function}")
    row.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    row.restype = None
    row(data.ctypes.data, out.ctypes.data, n)
    return out


golden = {}
for seed, (kind, (function, values, size, high)) in enumerate(TYPES.items(), start=1):
    data = blocks(seed, BLOCKS * size, size, high)
    second = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).astype(np.float32).reshape(-1)
    first = ggml(function, data, BLOCKS * values) if function else second
    assert first.tobytes() == second.tobytes(), kind
    golden[kind] = {
        "seed": seed,
        "blocks": BLOCKS,
        "high_bytes": high,
        "sha256": hashlib.sha256(first.astype("<f4").tobytes()).hexdigest(),
        "first_bits": [int(bits) for bits in first[:32].view(np.uint32)],
    }
with open(sys.argv[1], "w") as out:
    json.dump(golden, out, indent=1)
    out.write("\n")
