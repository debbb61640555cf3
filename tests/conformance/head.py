#!/usr/bin/env python3
"""Does llama.cpp give the posterior of a classification head that was folded into a file as a token a label?

usage: head.py LIMBECK PACKAGE          LIMBECK is the program, PACKAGE an artifact of a run with train.head = classification
needs: what llamacpp.sh installs; run by the same Python.

Asks both for a few messages: `limbeck score`, and llama.cpp for the log-probabilities of the labels' tokens after the prompt, over
the whole vocabulary, from the file with every weight expanded to float32. Over the labels alone these are normalised and brought
to the report's temperature, as the artifact's answers are. Exit 1 where an answer is further off than 0.002.
"""

import json
import math
import pathlib
import subprocess
import sys
import tempfile

from gguf import GGUFReader

TEXTS = ["my card was stolen", "how do I top up?", "where is it", "I want my money back, please", "hello"]
TOLERANCE = 0.002


def main(limbeck, package):
    manifest = json.load(open(package / "manifest.json"))
    labels, system = manifest["task"]["labels"], manifest["task"]["system"]
    report = json.load(open(package / "report/report.json"))
    arm = next(arm for arm in report["arms"] if arm["name"] == report["candidate"])
    temperature = (arm.get("calibration") or {}).get("temperature", 1.0)
    (model,) = package.glob("*.gguf")
    tokens = GGUFReader(model).fields["tokenizer.ggml.tokens"].contents()
    ids = [tokens.index(f"<|label:{label}|>") for label in labels]

    messages = lambda text: ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]
    cases = [{"id": text, "messages": messages(text), "continuations": [[i] for i in ids]} for text in TEXTS]
    with tempfile.TemporaryDirectory() as scratch:
        asked, told = pathlib.Path(scratch) / "in.json", pathlib.Path(scratch) / "out.json"
        asked.write_text(json.dumps({"model": str(model), "arithmetic": "f32", "cases": cases}))
        subprocess.run([sys.executable, pathlib.Path(__file__).with_name("llamacpp.py"), asked, told], check=True)
        answers = json.load(open(told))
    worst = 0.0
    for text, case in zip(TEXTS, answers["cases"]):
        scores = [c["logprobs"][0] / temperature for c in case["continuations"]]
        weights = [math.exp(s - max(scores)) for s in scores]
        theirs = {label: w / sum(weights) for label, w in zip(labels, weights)}
        ours = json.loads(subprocess.check_output([limbeck, "score", package, text, "--no-verify", "--json", "--arithmetic", "f32"]))
        for label, p in [(ours["label"], ours["confidence"]), *ours["others"]]:
            worst = max(worst, abs(p - theirs[label]))
    print(f"{len(TEXTS)} messages, {len(labels)} labels, {answers['referee']}: largest difference {worst:.6f}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], pathlib.Path(sys.argv[2])))
