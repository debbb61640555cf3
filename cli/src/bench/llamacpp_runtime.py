"""llama.cpp as a runtime: usage llamacpp_runtime.py MODEL THREADS. Reads lines of JSON, {"prompt": [ids], "tokens": N}, and
answers each with one: tokens a second of reading the prompt and of writing N tokens greedily, by llama.cpp's own clock, which
leaves HTTP out. Needs: pip install xllamacpp"""
import json, os, sys, tempfile, urllib.request

log = tempfile.TemporaryFile()
answers = os.fdopen(os.dup(1), "w")
errors = os.dup(2)
os.dup2(log.fileno(), 1)
os.dup2(log.fileno(), 2)

import xllamacpp


def ask(server, body):
    request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    # An own opener: a proxy of the environment has no business with the loopback address.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600) as response:
        return json.load(response)


def main():
    params = xllamacpp.CommonParams()
    params.model.path, threads = sys.argv[1], int(sys.argv[2])
    params.n_ctx = 4096
    params.n_parallel = 1
    params.warmup = True
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
    server = xllamacpp.Server(params)
    print(json.dumps({"version": f"xllamacpp {xllamacpp.__version__}", "system": xllamacpp.get_system_info()}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        body = {"prompt": asked["prompt"], "n_predict": asked["tokens"], "temperature": 0, "samplers": ["top_k"], "top_k": 1,
                "ignore_eos": True, "cache_prompt": False}
        answer = ask(server, body)
        timings = answer["timings"]
        if timings["prompt_n"] != len(asked["prompt"]) or timings["predicted_n"] != asked["tokens"]:
            raise RuntimeError(f"llama.cpp read {timings['prompt_n']} and wrote {timings['predicted_n']} tokens")
        # Its clock of writing starts when the first token is there.
        written = (asked["tokens"] - 1) / timings["predicted_ms"] * 1e3
        told = {"prompt_tokens_per_s": timings["prompt_per_second"], "written_tokens_per_s": written}
        print(json.dumps(told), file=answers, flush=True)


try:
    main()
except Exception as error:
    log.seek(0)
    os.write(errors, log.read()[-4000:] + f"\n{type(error).__name__}: {error}\n".encode())
    sys.exit(1)
