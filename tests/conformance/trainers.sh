#!/usr/bin/env bash
# What `limbeck data export` writes, read by the trainers that it is for: TRL's SFTTrainer takes the chat rows and its
# DPOTrainer the pairs, each for a step; axolotl's `type: chat_template` makes tokens of the chat rows.
#
#   tests/conformance/trainers.sh VENV [DATASET]
#
# VENV is a folder for a Python environment, made and filled where needed (network: PyPI only then; a few GB). DATASET is a
# frozen dataset's folder or a run with one; left out, the tests' small recipe is frozen anew.
set -euo pipefail
venv=${1:?usage: trainers.sh VENV [DATASET]}
dataset=${2:-}
cd "$(dirname "$0")/../.."
out=target/trainers
rm -rf "$out" && mkdir -p "$out"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import trl, datasets, torch' 2>/dev/null ||
    "$venv/bin/pip" install --quiet torch trl==1.16.0 datasets
# axolotl asks for GPU packages that its dataset code does without.
"$venv/bin/python" -c 'import axolotl' 2>/dev/null ||
    "$venv/bin/pip" install --quiet --no-deps axolotl==0.19.0 colorama addict || true

cargo build --release --locked -p limbeck --bin limbeck
bin=${CARGO_TARGET_DIR:-target}/release/limbeck
if [ -z "$dataset" ]; then
    "$bin" train recipes/quickstart --offline --runs-dir "$out/runs" --set train.num_epochs=1 \
        --set train.learning_rate=1e-6
    dataset=$out/runs/quickstart
fi
"$bin" data export "$dataset" --format chat --split train --out "$out/chat.jsonl"
"$bin" data export "$dataset" --format dpo --split train --out "$out/pairs.jsonl"
"$venv/bin/python" tests/conformance/trainers.py "$out/chat.jsonl" "$out/pairs.jsonl" "$out/work"
