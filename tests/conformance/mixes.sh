#!/usr/bin/env bash
# Every format of one base: each tensor is what ggml encodes, byte by byte, and llama.cpp loads the file and says what we say.
#   mixes.sh VENV BASE [FOLDER [IMATRIX [FORMAT...]]]
# VENV is a folder for a Python environment, made and filled where needed. BASE is a .gguf or a Hugging Face folder, IMATRIX a
# file as GGUF, or none. FOLDER (default target/mixes) gets the files: some six times the base in float32 for all formats.
set -euo pipefail
venv=${1:?usage: mixes.sh VENV BASE [FOLDER [IMATRIX [FORMAT...]]]}
base=$(realpath "${2:?BASE is missing}")
imatrix=${4:-none}
[ "$imatrix" = none ] || imatrix=$(realpath "$imatrix")
cd "$(dirname "$0")/../.."
out=${3:-target/mixes}
tests/conformance/llamacpp.sh "$venv"
cargo build --release --locked -p limbeck -p limbeck-quantize --example export-mixes
"${CARGO_TARGET_DIR:-target}/release/examples/export-mixes" "$base" "$out" "$imatrix" "${@:5}"
for questions in "$out"/*.json; do
    name=$(basename "$questions" .json)
    [ "$name" = F32 ] && continue
    matrix=(); [ "$imatrix" = none ] || matrix=("$imatrix")
    "$venv/bin/python" tests/conformance/mixes.py "$out/F32.gguf" "$out/$name.gguf" "${matrix[@]}"
    "$venv/bin/python" tests/conformance/llamacpp.py "$questions" "$out/$name.answers" || { echo "$name: llama.cpp differs"; exit 1; }
    echo "$name: largest difference of a log-probability $(sed -n 's/^ "max_abs_diff": \([^,]*\),*$/\1/p' "$out/$name.answers")"
done
