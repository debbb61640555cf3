#!/usr/bin/env python3
"""Golden blocks for quantize/tests/blocks.rs: what ggml itself encodes, edge values included.

usage: ggml_blocks.py ../../quantize/tests/golden/blocks.json      (needs: pip install xllamacpp gguf numpy)

ggml is the one inside xllamacpp's shared library, called through its C function ggml_quantize_chunk. PyPI's gguf, a
second implementation, is compared on the way; where it differs from ggml, ggml is right and the script says so. It has
no encoder for what is searched for (k-quants, IQ4_NL, anything under an importance matrix): of that the file holds digests.
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


# Of a block of 256: what is searched for, plain and under an importance matrix.
SEARCHED = {"Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20}
SEARCHED_BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "IQ4_NL": 8 * 18}
WEIGHTED = {**SEARCHED, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7}
WEIGHTED_BYTES = {**SEARCHED_BYTES, **{kind: 8 * BYTES[kind] for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1")}}
WIDTH = 1024


def ggml(kind, values):
    x = np.ascontiguousarray(values, dtype=np.float32)
    out = np.zeros(len(x) // 32 * BYTES[kind], np.uint8)
    n = GGML.ggml_quantize_chunk(TYPES[kind], x.ctypes.data, out.ctypes.data, 0, 1, len(x), None)
    assert n == len(out), (kind, n)
    return out.tobytes()


def searched(kind, values, importance, width):
    """Bytes of rows of `width`, or None where a block decodes to what is no number or its values are beyond all scales."""
    x = np.ascontiguousarray(values, dtype=np.float32)
    out = np.zeros(len(x) // 256 * WEIGHTED_BYTES[kind], np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    at = None if weights is None else weights.ctypes.data
    n = GGML.ggml_quantize_chunk(WEIGHTED[kind], x.ctypes.data, out.ctypes.data, 0, len(x) // width, width, at)
    assert n == len(out), (kind, n)
    with np.errstate(all="ignore"):
        back = gguf.quants.dequantize(out, gguf.GGMLQuantizationType(WEIGHTED[kind]))
    return out.tobytes() if np.isfinite(back).all() and np.abs(x).max() <= 1e9 else None


def searched_digests(values, importances, width):
    """Each searched type's digest without importance (`Q4_K`) and with each of `importances` (`Q4_K even`)."""
    digest = lambda data: None if data is None else hashlib.sha256(data).hexdigest()
    row = {kind: digest(searched(kind, values, None, width)) for kind in SEARCHED}
    for name, importance in importances.items():
        row.update({f"{kind} {name}": digest(searched(kind, values, importance, width)) for kind in WEIGHTED})
    return row


def importance(seed, n):
    """16 random bits times a power of two, none of them zero; and the same with every third column zero, and a whole block."""
    even = np.array([((u >> 48) + 1) * 2.0 ** (-(u & 7) - 8) for u in splitmix64(seed, n)], np.float32)
    gaps = even.copy()
    gaps[::3] = 0
    gaps[64:96] = 0
    return {"even": even, "gaps": gaps}


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


def bell(seed, n):
    """Sums of eight 16-bit numbers about zero, like the weights of a layer."""
    u = list(splitmix64(seed, 2 * n))
    parts = lambda v: sum((v >> shift) & 0xFFFF for shift in (0, 16, 32, 48))
    return np.array([(parts(u[2 * i]) + parts(u[2 * i + 1]) - 8 * 32768) * 2.0**-22 for i in range(n)], np.float32)


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
    for name, make in (("fine", fine), ("coarse", coarse), ("bell", bell)):
        x = make(17, 1 << 16)
        row = {"name": name, "seed": 17, "n": len(x), "f32_sha256": hashlib.sha256(x.tobytes()).hexdigest()}
        for kind in TYPES:
            data = ggml(kind, x)
            row[kind] = hashlib.sha256(data).hexdigest()
            if gguf.quants.quantize(x, gguf.GGMLQuantizationType(TYPES[kind])).tobytes() != data:
                differs.add((kind, "series " + name))
        row.update(searched_digests(x, importance(19, WIDTH), WIDTH))
        series.append(row)
    # Superblocks of eight edge blocks, each beginning at another.
    values = [np.frombuffer(bytes.fromhex(block["f32"]), np.float32) for block in blocks]
    supers = []
    for first in range(len(values)):
        x = np.concatenate([values[(first + i) % len(values)] for i in range(8)])
        supers.append({"first": first, **searched_digests(x, importance(19, 256), 256)})
    for kind, name in sorted(differs):
        print(f"gguf differs from ggml: {kind}, {name}")
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        rows = lambda xs: ",\n".join("  " + json.dumps(x) for x in xs)
        f.write(f'{{"blocks": [\n{rows(blocks)}\n],\n"series": [\n{rows(series)}\n],\n"supers": [\n{rows(supers)}\n]}}\n')


main()
