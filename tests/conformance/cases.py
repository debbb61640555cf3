#!/usr/bin/env python3
"""The cases of tests/conformance/run: test prompts of a run with some labels as continuations, and the verdict on them.

usage: cases.py RUN OUT                    writes OUT/{Q8_0,Q4_0}.{f32,served}.in.json
       cases.py --with-adapter ASKED BASE ADAPTER OUT    the same cases, of another model with an adapter beside it
       cases.py --compare ASKED ANSWERED   exits 1 unless ids are equal and log-probabilities agree

With every weight expanded to f32 two right readers differ by rounding only: 0.002. As served, both round activations to 8 bits
in front of each quantized matrix; what is left lets some of them round to the other side, as two set-ups of llama.cpp do to each
other (parity.py measures how far). There the mean difference and the share of equal first choices are judged, and the figures are printed. An adapter beside
the model is computed in float32 by us: no more than hundredths are asked of that comparison.
"""
import glob
import json
import statistics
import sys

# Each token costs the referee a request that lists the whole vocabulary, so a few rows and a few labels must do.
ROWS, LABELS = 6, 4


def write(run, out):
    labels = json.load(open(f"{run}/dataset/dataset.json"))["labels"]
    rows = [json.loads(line) for line in open(f"{run}/dataset/test.jsonl")][:ROWS]
    for form in ("Q8_0", "Q4_0"):
        [model] = glob.glob(f"{run}/quantize/**/*{form}*.gguf", recursive=True)
        cases = []
        for i, row in enumerate(rows):
            others = [label for label in labels if label != row["target"]]
            few = [row["target"]] + [others[(i * 5 + j * 3) % len(others)] for j in range(LABELS - 1)]
            cases.append({"id": row["id"][:12], "messages": row["messages"], "continuations": few})
        cases.append({"id": "text", "prompt": "The card, which I ordered on 12 March 2026, costs £3.50.\n\n  Why?", "continuations": [" the", "\n"]})
        for arithmetic in ("f32", "served"):
            some = cases if arithmetic == "served" else cases[:2] + cases[-1:]
            request = {"model": model, "arithmetic": arithmetic, "threads": 2, "cases": some}
            json.dump(request, open(f"{out}/{form}.{arithmetic}.in.json", "w"))


def compare(asked, answered):
    asked, answered = json.load(open(asked)), json.load(open(answered))
    worst, gaps, same, choices = 0.0, [], 0, 0
    for ours, theirs in zip(asked["cases"], answered["cases"], strict=True):
        if ours["our_prompt_tokens"] != theirs["prompt_tokens"]:
            sys.exit(f"case {ours['id']}: the prompt's token ids differ from llama.cpp's")
        totals = []
        for mine, other in zip(ours["ours"], theirs["continuations"], strict=True):
            gaps += [abs(a - b) for a, b in zip(mine, other["logprobs"], strict=True)]
            totals.append((sum(mine), other["total"]))
        same += max(totals, key=lambda t: t[0]) == max(totals, key=lambda t: t[1])
        choices += 1
    worst, mean = max(gaps), statistics.fmean(gaps)
    kind = asked["arithmetic"]
    print(f"{asked['model'].split('/')[-1]} {kind}: {len(gaps)} log-probabilities, mean difference {mean:.5f}, largest {worst:.4f}, same first choice {same}/{choices}")
    ok = worst < 0.002 if kind == "f32" else mean < 0.05 and same >= choices - 1
    sys.exit(0 if ok else "too far from llama.cpp's reading of the same file")


def with_adapter(asked, base, adapter, out):
    asked = json.load(open(asked))
    json.dump({**asked, "model": base, "lora": adapter}, open(out, "w"))


if sys.argv[1] == "--compare":
    compare(*sys.argv[2:4])
elif sys.argv[1] == "--with-adapter":
    with_adapter(*sys.argv[2:6])
else:
    write(*sys.argv[1:3])
