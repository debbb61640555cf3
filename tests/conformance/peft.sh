#!/usr/bin/env bash
# Adapters saved here, loaded by PEFT, on every family: peft.sh VENV [FOLDER]
# VENV has torch, transformers and peft. FOLDER (default target/peft) keeps what was compared. The other way round, PEFT's
# adapters loaded here, is model/tests/families.rs.
set -euo pipefail
venv=${1:?usage: peft.sh VENV [FOLDER]}
cd "$(dirname "$0")/../.."
out=${2:-target/peft}
rm -rf "$out" && mkdir -p "$out"
cargo build --release --locked -p limbeck -p limbeck-model --example save-adapter
"${CARGO_TARGET_DIR:-target}/release/examples/save-adapter" model/tests/golden/families "$out"
"$venv/bin/python" tests/conformance/peft_adapter.py "$out"/*
