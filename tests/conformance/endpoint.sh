#!/usr/bin/env bash
# A real OpenAI-compatible server, llama.cpp's, on loopback: as the referee of the shipped file, as an arm of the evaluation, and
# as a teacher.
#
#   tests/conformance/endpoint.sh VENV [RUNS]
#
# VENV is a folder for a Python environment, made and filled where needed (network: PyPI only then). RUNS holds the quickstart's
# run, as tests/conformance/run leaves it (default target/conformance); it is copied, and made where it is not there.
set -euo pipefail
venv=${1:?usage: endpoint.sh VENV [RUNS]}
cd "$(dirname "$0")/../.."
runs=${2:-target/conformance}
here=tests/conformance
$here/llamacpp.sh "$venv"
cargo build --release --locked -p limbeck --bin limbeck
limbeck=$(realpath "${CARGO_TARGET_DIR:-target}/release/limbeck")
[ -f "$runs/runs/quickstart/eval/report.json" ] || "$limbeck" eval recipes/quickstart --offline --runs-dir "$runs/runs" ||
    [ $? -eq 4 ]
work=$(realpath "$runs")/endpoint
rm -rf "$work" && mkdir -p "$work/runs"
cp -r "$runs/runs/quickstart" "$work/runs/"
cp -r recipes/quickstart "$work/quickstart"
shipped=$(find "$work/runs/quickstart/quantize" -name '*Q8_0*.gguf' | head -n 1)

# Serves until the shell ends: the server lives as long as its stdin.
serve() {
    coproc SERVER { exec "$venv/bin/python" $here/serve.py "$1" 2>"$work/server.log"; }
    read -r url <&"${SERVER[0]}"
    server=$SERVER_PID stdin=${SERVER[1]}
}

echo "-- the shipped file in llama.cpp's server"
serve "$shipped"
"$limbeck" eval "$work/quickstart" --runs-dir "$work/runs" --referee "$url" --json > "$work/referee.json" ||
    { cat "$work/referee.json"; echo "the referee disagrees"; exit 1; }
"$venv/bin/python" - "$work/referee.json" <<'END'
import json, sys
said = json.load(open(sys.argv[1]))
compared = said["compared"]
print(f"{compared['rows']} rows: {compared['agreement']:.4f} answered alike, {said['prompts_counted']} prompts counted, "
      f"{len(said['prompts_otherwise'])} otherwise; accuracy {compared['first_accuracy']:.4f} here, {compared['second_accuracy']:.4f} there")
END

echo "-- as an arm, twice: asked, then replayed without it"
cat >> "$work/quickstart/prices.toml" <<'END'

[models.shipped]
input_per_1m = 0.1
output_per_1m = 0.4
END
"$venv/bin/python" - "$work/quickstart/recipe.toml" "$url" <<'END'
import pathlib, sys
path, url = pathlib.Path(sys.argv[1]), sys.argv[2]
arms = "".join(f"""[[eval.arm]]
name = "{name}"
kind = "endpoint"
url = "{url}"
model = "shipped"
api = "{api}"
prompt = "{prompt}"
concurrency = 2
max_spend = 1.0

""" for name, api, prompt in [("live", "chat", "recipe"), ("text", "completions", "guided")])
path.write_text(path.read_text().replace("[promote]", arms + "[promote]"))
END
started=$SECONDS
"$limbeck" eval "$work/quickstart" --runs-dir "$work/runs" --record "$work/replies.jsonl" > "$work/eval.txt" || [ $? -eq 4 ]
echo "asked in $((SECONDS - started)) s; $(wc -l < "$work/replies.jsonl") replies recorded"
grep -E '^ *(live|text|Q8_0) ' "$work/eval.txt"
grep -A3 '  live: ' "$work/eval.txt"

echo "-- as a teacher, three draws a message"
"$venv/bin/python" - recipes/quickstart/traces.jsonl "$work/unlabeled.jsonl" <<'END'
import json, sys
with open(sys.argv[1]) as traces, open(sys.argv[2], "w") as out:
    for i, line in zip(range(40), traces):
        call = json.loads(line)
        out.write(json.dumps({"id": f"u{i}", "text": call["request"]["messages"][-1]["content"]}) + "\n")
END
(cd "$work" && "$limbeck" teach quickstart --runs-dir runs --arm live --messages unlabeled.jsonl --samples 3)
(cd "$work" && "$limbeck" import taught/traces.jsonl --out imported > /dev/null && wc -l < taught/traces.jsonl)

echo "-- as a batch: what is written is run against the server line by line, and teaches what it teaches live"
(cd "$work" && "$limbeck" teach quickstart --runs-dir runs --arm live --messages unlabeled.jsonl --out batched --offline \
    --batch-write batch.jsonl --batch-requests 25)
"$venv/bin/python" - "$work" "$url" <<'END'
import json, pathlib, sys, urllib.request
work, url = pathlib.Path(sys.argv[1]), sys.argv[2].removesuffix("/v1")
with open(work / "results.jsonl", "w") as out:
    for path in sorted(work.glob("batch-*.jsonl")):
        for line in open(path):
            asked = json.loads(line)
            call = urllib.request.Request(url + asked["url"], json.dumps(asked["body"]).encode(), {"content-type": "application/json"})
            with urllib.request.urlopen(call) as reply:
                response = {"status_code": reply.status, "request_id": "r", "body": json.load(reply)}
            out.write(json.dumps({"id": "b", "custom_id": asked["custom_id"], "response": response, "error": None}) + "\n")
END
(cd "$work" && "$limbeck" teach quickstart --runs-dir runs --arm live --messages unlabeled.jsonl --out batched --offline \
    --batch-read results.jsonl)
(cd "$work" && "$limbeck" teach quickstart --runs-dir runs --arm live --messages unlabeled.jsonl --out one-by-one > /dev/null)
"$venv/bin/python" - "$work" <<'END'
import json, pathlib, sys
work = pathlib.Path(sys.argv[1])
def told(folder, name):
    lines = [json.loads(line) for line in open(work / folder / name)]
    return [{k: v for k, v in line.items() if k not in ("time", "latency_ms")} for line in lines]
for name in ("traces.jsonl", "queue.jsonl", "rejected.jsonl"):
    batched, live = told("batched", name), told("one-by-one", name)
    assert batched == live, f"{name}: {len(batched)} by batch, {len(live)} live, or not alike"
    print(f"{name}: {len(live)} lines, alike")
END

exec {stdin}>&-
wait "$server" 2>/dev/null || true
rm -rf "$work/runs/quickstart/eval/predictions/live.jsonl" "$work/runs/quickstart/eval/replies" "$work/runs/quickstart/eval/report.json"
"$limbeck" eval "$work/quickstart" --runs-dir "$work/runs" --offline --replay "$work/replies.jsonl" > "$work/again.txt" || [ $? -eq 4 ]
diff <(grep -E '^ *(live|text) ' "$work/eval.txt") <(grep -E '^ *(live|text) ' "$work/again.txt")
echo "replayed without the server: the same figures"
