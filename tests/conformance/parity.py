#!/usr/bin/env python3
"""Next-token distributions as llama.cpp serves a file, beside ours, and beside llama.cpp itself set up otherwise.

usage: parity.py MODEL.gguf TEXTS.csv LOGPROBS [--prompts N] [--out DIR]     TEXTS.csv has a column `text`; LOGPROBS is the
built example of that name (cargo build --release -p limbeck -p limbeck-model --example logprobs)

Each text is asked through the file's chat template, and left out where the answer may end at once (llama.cpp says no
probabilities of that); of the 20 likeliest next tokens (by llama.cpp as it comes) the
log-probabilities are compared. Int8 activations make a model a step function: a difference in the last place of float32 rounds
some of them to the other side, and every layer passes that on. How far that goes no bound on our arithmetic alone can tell; how
far two set-ups of llama.cpp are from each other does. They differ in nothing that a user would call a difference:

  as it comes     flash attention, keys and values in float16, up to 512 tokens a batch
  small batches   the same, eight tokens a batch: other sums in attention, other kernels
  no flash        attention by plain products
  f32 cache       the same with keys and values in float32: what ours does
  plain kernels   without the repacked copies of its blocks

Prints a table of all pairs: mean and largest |difference|, the KL divergence over these tokens, equal first choices.
"""
import argparse
import csv
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
SETUPS = ["as it comes", "small batches", "no flash", "f32 cache", "plain kernels"]
TOP = 20


def ask(model, setup, prompts):
    """In a process of its own: [[(id, log-probability)]] of each prompt, likeliest first."""
    import llamacpp
    import xllamacpp

    plain = xllamacpp.CommonParams

    def params():
        made = plain()
        if setup == "small batches":
            made.n_ubatch = made.n_batch = 8
        if setup in ("no flash", "f32 cache"):
            made.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if setup == "f32 cache":
            made.cache_type_k = made.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        if setup == "plain kernels":
            made.no_extra_bufts = True
        return made

    xllamacpp.CommonParams = params
    referee = llamacpp.Referee(model, 1, False)
    # The likeliest of each set-up hold the likeliest of all; a list of the whole vocabulary takes longer than the model.
    referee.vocab_size = 500
    out = []
    for n, prompt in enumerate(prompts):
        tokens = prompt if isinstance(prompt, list) else referee.tokenize(referee.render([{"role": "user", "content": prompt}]))
        try:
            table = {row["id"]: row["logprob"] for row in referee.next_token(tokens)}
        except KeyError:
            # An answer that ends at once comes without probabilities.
            table = {}
        referee.known.clear()
        out.append((tokens, table))
        if n % 50 == 49:
            print(f"{setup}: {n + 1} of {len(prompts)}", file=sys.stderr, flush=True)
    return out


def main():
    if len(sys.argv) == 5 and sys.argv[1] == "--ask":
        _, _, model, setup, scratch = sys.argv
        wanted = json.load(open(f"{scratch}/prompts.json"))
        log = os.open(f"{scratch}/llama.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        rows = ask(model, setup, wanted)
        if setup == SETUPS[0]:
            # Likeliest first, as dictionaries keep what they were given.
            top = [list(table)[:TOP] for _, table in rows]
            json.dump(top, open(f"{scratch}/top.json", "w"))
            json.dump([tokens for tokens, _ in rows], open(f"{scratch}/prompts.json", "w"))
        else:
            top = json.load(open(f"{scratch}/top.json"))
        json.dump([[table.get(token) for token in ids] for (_, table), ids in zip(rows, top, strict=True)], open(f"{scratch}/{setup}.json", "w"))
        # Its threads do not always end by themselves.
        os._exit(0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("logprobs")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--out", default="target/parity")
    a = parser.parse_args()
    scratch = Path(a.out)
    scratch.mkdir(parents=True, exist_ok=True)
    texts = [row["text"] for row in csv.DictReader(open(a.texts))]
    step = max(1, len(texts) // a.prompts)
    json.dump(texts[::step][: a.prompts], open(scratch / "prompts.json", "w"))
    for setup in SETUPS:
        subprocess.run([sys.executable, __file__, "--ask", a.model, setup, str(scratch)], check=True)
    prompts, top = json.load(open(scratch / "prompts.json")), json.load(open(scratch / "top.json"))
    found = {setup: json.load(open(scratch / f"{setup}.json")) for setup in SETUPS}
    kept = [i for i, ids in enumerate(top) if ids and all(None not in found[setup][i] for setup in SETUPS)]
    prompts, top = [prompts[i] for i in kept], [top[i] for i in kept]
    found = {setup: [rows[i] for i in kept] for setup, rows in found.items()}
    cases = [{"prompt_tokens": tokens, "continuations": [[token] for token in ids]} for tokens, ids in zip(prompts, top, strict=True)]
    for arithmetic, name in [("served", "limbeck, served"), ("f32", "limbeck, float32")]:
        request = scratch / f"{arithmetic}.in.json"
        json.dump({"model": a.model, "arithmetic": arithmetic, "cases": cases}, open(request, "w"))
        filled = json.loads(subprocess.run([a.logprobs, str(request)], check=True, capture_output=True).stdout)
        found[name] = [[value for [value] in case["ours"]] for case in filled["cases"]]
    print(f"{a.model.split('/')[-1]}, {len(prompts)} prompts, {TOP} tokens each")
    print("| | | mean | largest | KL | same first |\n|---|---|---|---|---|---|")
    for one, other in itertools.combinations(found, 2):
        gaps = [abs(x - y) for xs, ys in zip(found[one], found[other], strict=True) for x, y in zip(xs, ys, strict=True)]
        kl = [sum(math.exp(x) * (x - y) for x, y in zip(xs, ys, strict=True)) for xs, ys in zip(found[one], found[other], strict=True)]
        same = statistics.fmean(max(range(TOP), key=xs.__getitem__) == max(range(TOP), key=ys.__getitem__) for xs, ys in zip(found[one], found[other], strict=True))
        print(f"| {one} | {other} | {statistics.fmean(gaps):.4f} | {max(gaps):.3f} | {statistics.fmean(kl):.6f} | {same:.3f} |")


main()
