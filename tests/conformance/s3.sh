#!/usr/bin/env bash
# The store in a bucket against an S3 server on loopback (PyPI's moto): promoted by 8 processes at once, by processes that
# are killed, damaged, mended, read from elsewhere.
#
#   tests/conformance/s3.sh VENV
#
# VENV is a folder for a Python environment, made and filled where needed (network: PyPI only then).
set -euo pipefail
venv=${1:?usage: tests/conformance/s3.sh VENV}
cd "$(dirname "$0")/../.."
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import moto.server, moto.s3' 2>/dev/null || "$venv/bin/pip" install --quiet 'moto[s3,server]==5.2.5'
said=$(mktemp)
"$venv/bin/python" tests/conformance/s3_server.py 0 >"$said" 2>/dev/null &
server=$!
trap 'kill "$server" 2>/dev/null; rm -f "$said"' EXIT
for _ in $(seq 300); do [ -s "$said" ] && break; sleep 0.1; done
port=$(head -n 1 "$said")
[ -n "$port" ] || { echo "the server does not start"; exit 1; }
export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1
"$venv/bin/python" - <<'PY'
import os, urllib.request
request = urllib.request.Request(os.environ["AWS_ENDPOINT_URL"] + "/limbeck", method="PUT", headers={
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"})
urllib.request.urlopen(request, timeout=30).read()
PY
cargo test --release --locked -p limbeck-artifact --features object-store --test bucket -- --include-ignored --nocapture --test-threads=1
