#!/usr/bin/env bash
# llama.cpp tokenizes what limbeck writes as it tokenizes what its own converter writes: for SentencePiece vocabularies in
# three shapes, a file is written from tokenizer.json and llama.cpp's ids of some 400 texts are compared with the goldens.
#
#   sentence_piece.sh VENV [TOKENIZERS]
#
# VENV is a folder for a Python environment, made and filled where needed. TOKENIZERS is a folder with published
# vocabularies, made as tests/reference/sentencepiece_golden.py tells; with it, those are compared too.
set -euo pipefail
venv=${1:?usage: sentence_piece.sh VENV [TOKENIZERS]}
tokenizers=${2:+$(realpath "$2")}
cd "$(dirname "$0")/../.."
tests/conformance/llamacpp.sh "$venv"
"$venv/bin/python" -c 'import sentencepiece, tokenizers' 2>/dev/null || "$venv/bin/pip" install --quiet sentencepiece==0.2.3 tokenizers==0.23.3
cargo build --release --locked -p limbeck -p limbeck-model --example tokenizer-file
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
golden=model/tests/golden/sentence_piece
judge() { # SHAPE FOLDER NAME
    "${CARGO_TARGET_DIR:-target}/release/examples/tokenizer-file" "$2" "$3" "$out/$1.gguf"
    "$venv/bin/python" tests/reference/sentencepiece_golden.py file "$out/$1.gguf" "$out/$1.ids" > "$out/log" 2>&1 || { cat "$out/log"; exit 1; }
    "$venv/bin/python" - "$golden/$1.ids.json" "$out/$1.ids" <<'PY' || { echo "$1: llama.cpp differs"; exit 1; }
import json, sys
want, got = json.load(open(sys.argv[1]))["llamacpp"], json.load(open(sys.argv[2]))
sys.exit(want != got or len(want) < 300)
PY
    echo "$1: llama.cpp's ids of the file that limbeck wrote are the golden's"
}
config() { echo "{\"bos_token\": \"$1\", \"eos_token\": \"$2\", \"unk_token\": \"<unk>\", \"add_bos_token\": true}"; }
for shape in llama phi3 gemma; do
    mkdir "$out/$shape" && cp "$golden/$shape.json" "$out/$shape/tokenizer.json"
    if [ $shape = gemma ]; then config "<bos>" "<eos>"; else config "<s>" "</s>"; fi > "$out/$shape/tokenizer_config.json"
    judge $shape "$out/$shape" "$([ $shape = phi3 ] && echo Phi-3 || echo $shape)"
done
for name in ${tokenizers:+llama2 mistral gemma3}; do
    mkdir "$out/$name" && cp "$tokenizers/$name/tokenizer.json" "$out/$name/"
    if [ $name = gemma3 ]; then config "<bos>" "<eos>"; else config "<s>" "</s>"; fi > "$out/$name/tokenizer_config.json"
    judge $name "$out/$name" $name
done
