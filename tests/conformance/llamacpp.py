#!/usr/bin/env python3
"""llama.cpp as the referee of a GGUF file: what would it answer, and with which log-probabilities?

usage: llamacpp.py INPUT.json [OUTPUT.json]          (OUTPUT defaults to stdout)

INPUT
  {"model": "file.gguf",
   "arithmetic": "served" | "f32",     as llama.cpp serves it (it rounds activations to 8 bits in front of a quantized
                                       matrix), or every weight expanded to f32 first, by the PyPI package gguf, and no
                                       rounding anywhere: then two right readers agree to about 1e-4. Default "served".
   "threads": 1,
   "n_ctx": 2048,                      how long a row may be; llama.cpp makes it a multiple of 256
   "lora": "adapter.gguf",             optional: an adapter beside the model
   "tolerance": 0.001,                 optional: exit 1 if a log-probability in "ours" is further off than this
   "tokenize": ["text", ...],          optional: token ids, special tokens parsed, nothing added
   "cases": [{"id": "france",
              "prompt": "The capital of France is"       one of these three
              "prompt_tokens": [504, 3575, ...]
              "messages": [{"role": "user", "content": "..."}]   through the file's chat template, answer opened
              "top": 5,                                  the likeliest next tokens
              "continuations": [[7042], " London", ...], token ids, or text tokenized on its own
              "ours": [[-0.258], ...]}]}                 optional: what to compare with, as the continuations are

OUTPUT
  {"model": ..., "arithmetic": ..., "referee": "xllamacpp 2026.10.11549", "tokenize": [[ids], ...],
   "max_abs_diff": 0.0001,             only with "ours"
   "cases": [{"id": ..., "prompt": text | null, "prompt_tokens": [ids],
              "top": [{"id": 7042, "token": " Paris", "logprob": -0.258}, ...],
              "continuations": [{"tokens": [7042], "logprobs": [-0.258], "total": -0.258}, ...],
              "max_abs_diff": 0.0001}]}

Log-probabilities are natural logarithms over the whole vocabulary at temperature 1.
Exit status: 0 done, 1 beyond the tolerance, 2 llama.cpp could not do it (its log is shown).
"""

import json
import os
import sys
import tempfile
import urllib.request


def expand_to_f32(source, target):
    """A copy of the file whose every tensor is F32; metadata as it is."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        if kind == GGUFValueType.ARRAY:
            writer.add_key_value(key, field.contents(), kind, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, field.contents(), kind)
    writer.add_file_type(0)
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.tensor_type != GGMLQuantizationType.F32:
            data = quants.dequantize(data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(data, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Referee:
    def __init__(self, path, threads, exact, lora=None, n_ctx=2048):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = n_ctx
        params.n_parallel = 1
        params.warmup = False
        if lora:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
        # On a busy machine ggml's busy-wait costs a thousandfold: wait by sleeping.
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = threads
            cpu.poll = 0
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.version = f"xllamacpp {xllamacpp.__version__}"
        self.server = xllamacpp.Server(params)
        self.vocab_size = self.call("/v1/models")["data"][0]["meta"]["n_vocab"]
        self.known = {}

    def call(self, path, body=None):
        request = urllib.request.Request(self.server.listening_address + path, headers={"Content-Type": "application/json"})
        if body is not None:
            request.data = json.dumps(body).encode()
        # An own opener: a proxy of the environment has no business with the loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=600) as response:
            return json.load(response)

    def tokenize(self, text):
        return self.call("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def render(self, messages):
        return self.call("/apply-template", {"messages": messages})["prompt"]

    def next_token(self, tokens):
        """All next tokens, likeliest first: [{"id", "token", "logprob"}]."""
        key = tuple(tokens)
        if key not in self.known:
            answer = self.call(
                "/completion",
                {"prompt": list(tokens), "n_predict": 1, "temperature": 0, "n_probs": self.vocab_size, "cache_prompt": False},
            )
            used = answer["tokens_evaluated"]
            if used != len(tokens):
                raise RuntimeError(f"llama.cpp read {used} tokens where {len(tokens)} were given")
            rows = answer["completion_probabilities"][0]["top_logprobs"]
            self.known[key] = [{"id": r["id"], "token": r["token"], "logprob": r["logprob"]} for r in rows]
        return self.known[key]

    def judge(self, case):
        text = case.get("prompt")
        if "messages" in case:
            text = self.render(case["messages"])
        tokens = case["prompt_tokens"] if text is None else self.tokenize(text)
        out = {"id": case.get("id"), "prompt": text, "prompt_tokens": tokens}
        out["top"] = self.next_token(tokens)[: case.get("top", 5)]
        out["continuations"] = []
        for continuation in case.get("continuations", []):
            ids = self.tokenize(continuation) if isinstance(continuation, str) else continuation
            logprobs = []
            for i, token in enumerate(ids):
                table = {r["id"]: r["logprob"] for r in self.next_token(tokens + ids[:i])}
                logprobs.append(table[token])
            out["continuations"].append({"tokens": ids, "logprobs": logprobs, "total": sum(logprobs)})
        if "ours" in case:
            theirs = [c["logprobs"] for c in out["continuations"]]
            if [len(x) for x in theirs] != [len(x) for x in case["ours"]]:
                raise RuntimeError(f"case {out['id']}: \"ours\" has another shape than the continuations {theirs}")
            pairs = [(a, b) for xs, ys in zip(theirs, case["ours"]) for a, b in zip(xs, ys)]
            # A NaN must not pass as close: max() would drop it.
            out["max_abs_diff"] = max((abs(a - b) if a == a and b == b else float("inf") for a, b in pairs), default=0.0)
        return out


def main(argv):
    if len(argv) not in (2, 3):
        sys.exit(__doc__)
    with open(argv[1], encoding="utf-8") as f:
        plan = json.load(f)
    arithmetic = plan.get("arithmetic", "served")
    if arithmetic not in ("served", "f32"):
        sys.exit(f"arithmetic is {arithmetic!r}: say \"served\" or \"f32\"")

    # llama.cpp talks a lot: its log goes to a file, shown only if something fails.
    log = tempfile.TemporaryFile()
    stdout, stderr = os.dup(1), os.dup(2)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = plan["model"]
            if arithmetic == "f32":
                path = os.path.join(scratch, "f32.gguf")
                expand_to_f32(plan["model"], path)
            referee = Referee(path, plan.get("threads", 1), arithmetic == "f32", plan.get("lora"),
                              plan.get("n_ctx", 2048))
            out = {"model": plan["model"], "arithmetic": arithmetic, "referee": referee.version}
            out["tokenize"] = [referee.tokenize(t) for t in plan.get("tokenize", [])]
            out["cases"] = [referee.judge(case) for case in plan.get("cases", [])]
            diffs = [case["max_abs_diff"] for case in out["cases"] if "max_abs_diff" in case]
            if diffs:
                out["max_abs_diff"] = max(diffs)
            del referee
    except Exception as error:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        log.seek(0)
        sys.stderr.write(log.read()[-6000:].decode(errors="replace"))
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)

    text = json.dumps(out, indent=1, ensure_ascii=False) + "\n"
    if len(argv) == 3:
        with open(argv[2], "w", encoding="utf-8") as f:
            f.write(text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
    tolerance = plan.get("tolerance")
    if tolerance is not None and out.get("max_abs_diff", 0.0) > tolerance:
        print(f"log-probabilities differ by {out['max_abs_diff']:.6f}, more than {tolerance}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
