"""ggml's encoders, called in its own library: usage ggml_quantize.py FLOATS WIDTH THREADS, FLOATS f32 rows of WIDTH behind a
row of importance. Reads lines `TYPE IMPORTANCE` (ggml's number, 0 or 1), and answers each with a line of JSON: the best of
three timings in seconds, by the clock and of processor time a thread, and the SHA-256 of the blocks. Needs: pip install xllamacpp numpy"""
import ctypes, hashlib, json, os, sys, threading, time

import numpy as np
import xllamacpp
import xllamacpp.xllamacpp as library

GGML = ctypes.CDLL(library.__file__)
QUANTIZE = GGML.ggml_quantize_chunk
QUANTIZE.restype = ctypes.c_size_t
QUANTIZE.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
GGML.ggml_row_size.restype = ctypes.c_size_t
GGML.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
# Values that a thread takes at once: enough that Python's part is none.
CHUNK = 1 << 20


def encode(kind, values, out, width, importance, threads):
    rows = len(values) // width
    step = max(1, CHUNK // width)
    chunks = iter([(first, min(step, rows - first)) for first in range(0, rows, step)])
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            # Without the interpreter's lock, which ctypes gives back.
            QUANTIZE(kind, values.ctypes.data, out.ctypes.data, chunk[0] * width, chunk[1], width, importance)

    begun, cpu = time.perf_counter(), time.process_time()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    return time.perf_counter() - begun, (time.process_time() - cpu) / threads


def main():
    path, width, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    data = np.fromfile(path, np.float32)
    importance, values = np.ascontiguousarray(data[:width]), np.ascontiguousarray(data[width:])
    print(json.dumps({"version": f"xllamacpp {xllamacpp.__version__}"}), flush=True)
    for line in sys.stdin:
        kind, weighted = (int(word) for word in line.split())
        out = np.zeros(len(values) // width * GGML.ggml_row_size(kind, width), np.uint8)
        at = importance.ctypes.data if weighted else None
        wall, cpu = zip(*[encode(kind, values, out, width, at, threads) for _ in range(3)])
        print(json.dumps({"wall_s": min(wall), "cpu_s": min(cpu), "sha256": hashlib.sha256(out).hexdigest()}), flush=True)


main()
