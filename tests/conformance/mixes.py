#!/usr/bin/env python3
"""Whether the tensors of a GGUF file are what ggml itself encodes of the same weights, byte by byte.

usage: mixes.py F32.gguf FILE.gguf [IMATRIX.gguf]      (needs: xllamacpp, gguf, numpy)

F32.gguf has the weights, FILE.gguf the same in blocks, by the importance matrix if one is given.
"""
import ctypes
import sys

import numpy as np
import xllamacpp.xllamacpp as library
from gguf import GGUFReader

GGML = ctypes.CDLL(library.__file__)
GGML.ggml_quantize_chunk.restype = ctypes.c_size_t
GGML.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]

exact = {t.name: t for t in GGUFReader(sys.argv[1]).tensors}
importance = {}
if len(sys.argv) > 3:
    parts = {t.name: np.array(t.data, np.float32).reshape(-1) for t in GGUFReader(sys.argv[3]).tensors}
    for name, sums in parts.items():
        if name.endswith(".in_sum2"):
            importance[name.removesuffix(".in_sum2")] = sums / parts[name.replace(".in_sum2", ".counts")][0]
counts, wrong = {}, []
for tensor in GGUFReader(sys.argv[2]).tensors:
    kind = tensor.tensor_type
    if kind.name in ("F32", "F16"):
        continue
    values = np.ascontiguousarray(exact[tensor.name].data, np.float32)
    weights = importance.get(tensor.name)
    at = None if weights is None else np.ascontiguousarray(weights, np.float32)
    out = np.zeros(tensor.n_bytes, np.uint8)
    n = GGML.ggml_quantize_chunk(int(kind), values.ctypes.data, out.ctypes.data, 0, values.shape[0], values.shape[1],
                                 None if at is None else at.ctypes.data)
    assert n == tensor.n_bytes, (tensor.name, n)
    counts[kind.name] = counts.get(kind.name, 0) + 1
    if out.tobytes() != tensor.data.tobytes():
        wrong.append(tensor.name)
print(f"{sys.argv[2].split('/')[-1]}: {counts}, {len(wrong)} differ from ggml's{': ' + wrong[0] if wrong else ''}")
sys.exit(1 if wrong else 0)
