#!/usr/bin/env python3
"""llama.cpp's server on loopback, for as long as stdin is open: serve.py MODEL.gguf [CONTEXT [SLOTS]]

Prints its base address (http://127.0.0.1:PORT/v1) as the first line of stdout; its log goes to stderr.
"""

import sys

import xllamacpp


def main():
    model = sys.argv[1]
    context = int(sys.argv[2]) if len(sys.argv) > 2 else 2048
    slots = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context * slots
    params.n_parallel = slots
    params.use_jinja = True
    params.port = 0
    params.cpuparams.n_threads = 2
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()


main()
