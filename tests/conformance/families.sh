#!/usr/bin/env bash
# llama.cpp on the GGUF files of every family that can be written, against our own reading: families.sh VENV [FOLDER]
# VENV is a folder for a Python environment, made and filled where needed. FOLDER (default target/families) keeps the files.
set -euo pipefail
venv=${1:?usage: families.sh VENV [FOLDER]}
cd "$(dirname "$0")/../.."
out=${2:-target/families}
rm -rf "$out" && mkdir -p "$out"
tests/conformance/llamacpp.sh "$venv"
cargo build --release --locked -p limbeck -p limbeck-quantize --example export-families
"${CARGO_TARGET_DIR:-target}/release/examples/export-families" model/tests/golden/families "$out"
for questions in "$out"/*.json; do
    name=$(basename "$questions" .json)
    "$venv/bin/python" tests/conformance/llamacpp.py "$questions" "$out/$name.answers" || { echo "$name: llama.cpp differs"; exit 1; }
    echo "$name: largest difference of a log-probability $(sed -n 's/^ "max_abs_diff": \([^,]*\),*$/\1/p' "$out/$name.answers")"
done
