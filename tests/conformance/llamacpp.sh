#!/usr/bin/env bash
# Puts the llama.cpp referee into a Python environment (made if it is not there) and asks it: llamacpp.sh VENV INPUT.json [OUTPUT.json]
# What INPUT and OUTPUT hold is told at the top of llamacpp.py. Without INPUT it only installs.
set -euo pipefail
venv=${1:?usage: llamacpp.sh VENV [INPUT.json [OUTPUT.json]]}; shift
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import gguf, xllamacpp' 2>/dev/null || "$venv/bin/pip" install --quiet xllamacpp==2026.10.11549 gguf==0.19.0
[ $# -eq 0 ] || exec "$venv/bin/python" "$(dirname "$0")/llamacpp.py" "$@"
