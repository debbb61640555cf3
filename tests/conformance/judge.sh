#!/usr/bin/env bash
# A real chat model behind llama.cpp's server as the judge of a generation, and load tests against that server.
#
#   tests/conformance/judge.sh VENV JUDGE.gguf [WORK]
#
# VENV is a folder for a Python environment, made and filled where needed (network: PyPI only then). JUDGE is any chat model; a small
# one judges badly, and the figures then say so: how often the order decides, how many replies are no verdict. WORK is made anew
# (default target/conformance/judge).
set -euo pipefail
venv=${1:?usage: judge.sh VENV JUDGE.gguf [WORK]} judge=$(realpath "${2:?usage: judge.sh VENV JUDGE.gguf [WORK]}")
cd "$(dirname "$0")/../.."
work=${3:-target/conformance/judge} here=tests/conformance
$here/llamacpp.sh "$venv"
venv=$(realpath "$venv")
cargo build --release --locked -p limbeck --bin limbeck
limbeck=$(realpath "${CARGO_TARGET_DIR:-target}/release/limbeck")
rm -rf "$work" && mkdir -p "$work/letters" && work=$(realpath "$work")
cp recipes/quickstart/base.gguf "$work/letters/"

# Answers to calls of the quickstart, each a sentence; a reviewer wrote one in four anew.
"$venv/bin/python" - recipes/quickstart/traces.jsonl "$work/letters/traces.jsonl" <<'END'
import json, sys
seen = set()
with open(sys.argv[1]) as traces, open(sys.argv[2], "w") as out:
    for line in traces:
        try:
            call = json.loads(line)
            text, topic = call["request"]["messages"][-1]["content"], call["response"]["choices"][0]["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError):
            continue  # some calls were recorded in pieces, or broken off
        if text in seen or len(seen) >= 90:
            continue
        seen.add(text)
        answer = f"Your question is about {topic.replace('_', ' ')}. We have passed it on."
        choice = {"message": {"role": "assistant", "content": answer}}
        out.write(json.dumps({"id": len(seen), "request": {"messages": [{"role": "user", "content": text}]},
                              "response": {"model": "big", "choices": [choice]}}) + "\n")
END
cat > "$work/letters/recipe.toml" <<'END'
name = "letters"
[task]
kind = "generate"
system = "Answer the customer."
max_new_tokens = 48
[model]
base = "base.gguf"
[data]
traces = ["traces.jsonl"]
[data.split]
valid = 0.1
calibration = 0.1
test = 0.4
[train]
num_epochs = 6
learning_rate = 2e-3
batch_size = 8
[quantize]
formats = ["Q8_0"]
[eval.load]
rate = 2.0
calls = 40
[[eval.gate]]
kind = "floor"
metric = "validity"
min = 0.01
END
cd "$work"
"$limbeck" run letters --offline > run.txt 2>&1 || [ $? -eq 5 ] || { cat run.txt; exit 1; }
"$limbeck" review letters --export tasks.json --format label-studio > /dev/null
"$venv/bin/python" - <<'END'
import json
tasks = json.load(open("tasks.json"))
for i, task in enumerate(tasks):
    said = task["predictions"][0]["result"][0]["value"]["text"]
    said = said[0] if isinstance(said, list) else said
    text = "Thank you for asking. " + said.replace("We have passed it on.", "We will answer within a day.") if i % 4 == 0 else said
    task["annotations"] = [{"completed_by": 1, "result": [
        {"from_name": "label", "to_name": "text", "type": "textarea", "value": {"text": [text]}}]}]
json.dump(tasks, open("answers.json", "w"))
END
"$limbeck" review letters --import answers.json > /dev/null

coproc SERVER { exec "$venv/bin/python" "$OLDPWD/$here/serve.py" "$judge" 2>server.log; }
read -r url <&"${SERVER[0]}"
server=$SERVER_PID stdin=${SERVER[1]}
cat >> letters/recipe.toml <<END
[[eval.judge]]
name = "small"
kind = "pairwise"
url = "$url"
model = "judge"
concurrency = 2
[[eval.gate]]
kind = "judge"
judge = "small"
min = 0.05
[[eval.gate]]
kind = "floor"
metric = "rouge_l"
min = 0.01
[[eval.gate]]
name = "under-load"
kind = "latency"
p95_ms = 20000
under_load = true
END
started=$SECONDS
"$limbeck" eval letters --record replies.jsonl > eval.txt 2> eval.err || { code=$?; [ $code -eq 4 ] || [ $code -eq 7 ] || { cat eval.err; exit 1; }; }
echo "judged in $((SECONDS - started)) s; $(wc -l < replies.jsonl) replies recorded"
sed -n '/under load/,/server  /p; /by the judge/,/asked/p' eval.txt

echo "-- the same server under load"
"$limbeck" bench serve "$url" --model judge --messages letters/traces.jsonl --rate 0.5 --seconds 60 --clients 4 --max-tokens 16

exec {stdin}>&-
wait "$server" 2>/dev/null || true
rm -rf runs/letters/eval/replies runs/letters/eval/report.json
"$limbeck" eval letters --offline --replay replies.jsonl > again.txt 2>/dev/null || { code=$?; [ $code -eq 4 ] || [ $code -eq 7 ]; }
diff <(sed -n '/by the judge/,/reviewers/p' eval.txt) <(sed -n '/by the judge/,/reviewers/p' again.txt)
echo "replayed without the server: the same verdicts"
