#!/usr/bin/env python3
"""Golden blocks for quantize/tests/blocks.rs: what ggml itself encodes, edge values included.

usage: ggml_blocks.py ../../quantize/tests/golden/blocks.json      (needs: pip install xllamacpp gguf numpy)

ggml is the one inside xllamacpp's shared library, called through its C function ggml_quantize_chunk. PyPI's gguf, a
second implementation, is compared on the way; where it differs from ggml, ggml is right and the script says so.
"""

import ctypes
import hashlib
import json
import math
import struct
import sys

import gguf
import numpy as np
import xllamacpp.xllamacpp as library

GGML = ctypes.CDLL(library.__file__)
GGML.ggml_quantize_chunk.restype = ctypes.c_size_t
GGML.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
TYPES = {"F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
BYTES = {"F16": 64, "BF16": 64, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}


def ggml(kind, values):
    x = np.ascontiguousarray(values, dtype=np.float32)
    out = np.zeros(len(x) // 32 * BYTES[kind], np.uint8)
    n = GGML.ggml_quantize_chunk(TYPES[kind], x.ctypes.data, out.ctypes.data, 0, 1, len(x), None)
    assert n == len(out), (kind, n)
    return out.tobytes()


def decode(kind, data):
    return gguf.quants.dequantize(np.frombuffer(data, np.uint8), gguf.GGMLQuantizationType(TYPES[kind]))


def splitmix64(seed, n):
    mask = (1 << 64) - 1
    for _ in range(n):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def fine(seed, n):
    """24 random bits times a power of two between 2^-32 and 2^-17 (exact in f32): many magnitudes in a block."""
    return np.array([((u >> 40) - (1 << 23)) * 2.0 ** ((u & 15) - 32) for u in splitmix64(seed, n)], np.float32)


def coarse(seed, n):
    """Small integers over four: blocks full of rounding ties."""
    return np.array([((u >> 57) - 64) / 4.0 for u in splitmix64(seed, n)], np.float32)


def edges():
    tiny = 2.0**-149  # the smallest positive f32
    ramp = [i - 16.0 for i in range(32)]
    yield "zeros", [0.0] * 32
    yield "negative_zeros", [-0.0] * 32
    yield "smallest_denormal", [tiny] * 32
    yield "denormals", [tiny * (i * i * 977 - 300000) for i in range(32)]
    yield "scale_is_denormal_and_its_inverse_infinite", [1e-38 * (i - 15.5) for i in range(32)]
    yield "scale_is_denormal_and_its_inverse_finite", [5e-37 * (i - 15.5) for i in range(32)]
    yield "scale_vanishes_in_f16", [1e-7 * (i - 15.5) for i in range(32)]
    yield "scale_is_denormal_in_f16", [1e-4 * (i - 15.5) for i in range(32)]
    yield "negative_max", [-3.0 if i == 5 else 0.1 * i - 0.2 for i in range(32)]
    yield "positive_max", [7.0 if i == 21 else 0.1 * i - 0.2 for i in range(32)]
    yield "equal_magnitudes_negative_first", [-1.5, 1.5] * 16
    yield "equal_magnitudes_positive_first", [1.5, -1.5] * 16
    yield "constant_positive", [0.3] * 32
    yield "constant_negative", [-0.3] * 32
    yield "one_value", [0.0] * 31 + [1e-3]
    yield "ramp", ramp
    yield "ramp_down", [-v for v in ramp]
    yield "halves", [127.0] + [i + 0.5 for i in range(-15, 16)]
    yield "just_below_halves", [127.0] + [math.nextafter(i + 0.5, 0.0) for i in range(-15, 16)]
    yield "ties_of_four_bits", [-8.0] + [(i - 15) / 2.0 for i in range(31)]
    yield "largest_f16", [65504.0 * (1 if i % 3 else -1) for i in range(32)]
    yield "rounds_to_f16_infinity", [65520.0] + [1.0] * 31
    yield "largest_scale", [65504.0 * 127 if i == 9 else 1000.0 * i for i in range(32)]
    yield "huge", [1e30 * (i - 15) for i in range(32)]
    yield "largest_f32", [3.4028234663852886e38 * (1 if i % 2 else -1) for i in range(32)]
    yield "fine", fine(1, 32)
    yield "coarse", coarse(2, 32)


def main():
    blocks, differs = [], set()
    for name, values in edges():
        with np.errstate(over="ignore"):
            x = np.array(values, np.float64).astype(np.float32)
        block = {"name": name, "f32": x.tobytes().hex()}
        for kind in TYPES:
            data = ggml(kind, x)
            with np.errstate(all="ignore"):
                finite = np.isfinite(decode(kind, data)).all()
                theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(TYPES[kind])).tobytes()
            # A scale beyond f16 makes a block that decodes to infinity or NaN: our encoder refuses it.
            block[kind] = data.hex() if finite else None
            if finite and theirs != data:
                differs.add((kind, name))
        blocks.append(block)
    series = []
    for name, make in (("fine", fine), ("coarse", coarse)):
        x = make(17, 1 << 16)
        row = {"name": name, "seed": 17, "n": len(x), "f32_sha256": hashlib.sha256(x.tobytes()).hexdigest()}
        for kind in TYPES:
            data = ggml(kind, x)
            row[kind] = hashlib.sha256(data).hexdigest()
            if gguf.quants.quantize(x, gguf.GGMLQuantizationType(TYPES[kind])).tobytes() != data:
                differs.add((kind, "series " + name))
        series.append(row)
    for kind, name in sorted(differs):
        print(f"gguf differs from ggml: {kind}, {name}")
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        rows = lambda xs: ",\n".join("  " + json.dumps(x) for x in xs)
        f.write(f'{{"blocks": [\n{rows(blocks)}\n],\n"series": [\n{rows(series)}\n]}}\n')


main()
