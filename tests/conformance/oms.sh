#!/bin/sh
# Our signatures against PyPI's model-signing, both ways, and tampering against both.
#
#   tests/conformance/oms.sh VENV [OMS]
#
# VENV is a folder for a Python environment, made and filled where it is not ready (network: PyPI only then).
# OMS is the built example `oms` of limbeck-artifact; without it, it is built.
set -eu
venv=${1:?usage: tests/conformance/oms.sh VENV [OMS]}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)

if ! [ -x "$venv/bin/model_signing" ] || ! "$venv/bin/python" -c 'import OpenSSL' 2>/dev/null; then
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    # pyOpenSSL is imported by model-signing 1.1.1 but not declared.
    "$venv/bin/python" -m pip install --quiet model-signing==1.1.1 pyOpenSSL
fi
if [ $# -ge 2 ]; then
    oms=$2
else
    (cd "$root" && cargo build --quiet --release -p limbeck-artifact --example oms)
    oms=${CARGO_TARGET_DIR:-$root/target}/release/examples/oms
fi
python=$(CDPATH='' cd -- "$venv/bin" && pwd)/python
model_signing=${python%python}model_signing

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$work/log
checks=0

# must WORDS COMMAND...: the command succeeds.
must() {
    said=$1; shift
    if ! "$@" >"$log" 2>&1; then
        echo "FAILED: $said" >&2; cat "$log" >&2; exit 1
    fi
    checks=$((checks + 1))
}
# must_not WORDS CODE COMMAND...: the command exits with CODE.
must_not() {
    said=$1; code=$2; shift 2
    rc=0; "$@" >"$log" 2>&1 || rc=$?
    if [ "$rc" -ne "$code" ]; then
        echo "FAILED: $said: exit code $rc, not $code" >&2; cat "$log" >&2; exit 1
    fi
    checks=$((checks + 1))
}
their_sign() { "$model_signing" sign key --private_key "$1" --signature "$3" "$2"; }
their_verify() { "$model_signing" verify key --public_key "$1" --signature "$3" "$2"; }
our_sign() { "$oms" sign "$2" "$3" "$1"; }
our_verify() { "$oms" verify "$2" "$3" "$1"; }

fresh() { # a folder whose names sort in two ways, with an empty and a larger file
    rm -rf "$work/model" "$work/model.sig"
    mkdir -p "$work/model/a" "$work/model/sub/deep"
    printf 'in a folder\n' >"$work/model/a/b"
    printf 'before a/b by code point\n' >"$work/model/a-b"
    : >"$work/model/empty.bin"
    printf '{}' >"$work/model/sub/deep/tökenizer 1.json"
    head -c 3000000 /dev/zero >"$work/model/model.gguf"
}

# Keys: ours for both, theirs for both, and encrypted ones across.
must "we make a key" "$oms" keygen "$work/ours.pem" "$work/ours.pub.pem"
must "another key" "$oms" keygen "$work/other.pem" "$work/other.pub.pem"
must "we make an encrypted key" "$oms" keygen "$work/locked.pem" "$work/locked.pub.pem" "pass phrase"
must "cryptography reads our encrypted key and makes keys of its own" "$python" - "$work" <<'PY'
import os, sys
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import serialization as s
w = sys.argv[1]
key = s.load_pem_private_key(open(f"{w}/locked.pem", "rb").read(), b"pass phrase")
pem = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
assert pem == open(f"{w}/locked.pub.pem", "rb").read()
theirs = ec.generate_private_key(ec.SECP256R1())
os.umask(0o077)
def write(name, data):
    open(f"{w}/{name}", "wb").write(data)
for name, how in [("theirs.pem", s.NoEncryption()), ("theirs-locked.pem", s.BestAvailableEncryption(b"secret"))]:
    write(name, theirs.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, how))
write("theirs.pub.pem", theirs.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
PY
fresh
must "we sign with their encrypted key" "$oms" sign "$work/model" "$work/model.sig" "$work/theirs-locked.pem" secret
must "they verify it" their_verify "$work/theirs.pub.pem" "$work/model" "$work/model.sig"

# Both directions: with either's key, the bundle inside and beside the folder, the folder renamed afterwards.
for signer in our their; do
    for key in ours theirs; do
        for place in model/model.sig model.sig; do
            fresh
            must "$signer signature with the key of $key in $place" \
                "${signer}_sign" "$work/$key.pem" "$work/model" "$work/$place"
            must "we verify it" our_verify "$work/$key.pub.pem" "$work/model" "$work/$place"
            must "they verify it" their_verify "$work/$key.pub.pem" "$work/model" "$work/$place"
            rm -rf "$work/renamed"; mv "$work/model" "$work/renamed"
            place=$(echo "$place" | sed 's,^model/,renamed/,')
            must "we verify it renamed" our_verify "$work/$key.pub.pem" "$work/renamed" "$work/$place"
            must "they verify it renamed" their_verify "$work/$key.pub.pem" "$work/renamed" "$work/$place"
        done
    done
done

# Tampering: refused by both, whoever signed.
cat >"$work/edit.py" <<'PY'
import base64, json, sys
bundle = json.load(open(sys.argv[1]))
envelope = bundle["dsseEnvelope"]
payload = base64.b64decode(envelope["payload"])
edited = payload.replace(b"model.gguf", b"model.GGUF")
assert edited != payload
envelope["payload"] = base64.b64encode(edited).decode()
json.dump(bundle, open(sys.argv[1], "w"))
PY
refused() {
    must_not "we refuse $1" 6 our_verify "$2" "$work/model" "$work/model.sig"
    must_not "they refuse $1" 1 their_verify "$2" "$work/model" "$work/model.sig"
}
for signer in our their; do
    tamper() {
        fresh
        must "$signer signature" "${signer}_sign" "$work/ours.pem" "$work/model" "$work/model.sig"
        (cd "$work" && eval "$2")
        refused "$1, $signer signature" "$work/ours.pub.pem"
    }
    tamper "a changed byte" 'printf x | dd of=model/model.gguf bs=1 seek=1500000 conv=notrunc 2>/dev/null'
    tamper "a longer file" 'printf x >>model/empty.bin'
    tamper "a missing file" 'rm model/a-b'
    tamper "an extra file" 'printf x >model/a/extra'
    tamper "two files with each other's content" 'mv model/a-b t; mv model/a/b model/a-b; mv t model/a/b'
    tamper "a symlink" 'mv model/a-b t; ln -s ../t model/a-b'
    tamper "another payload" '"$python" "$work/edit.py" model.sig'
    tamper "a cut bundle" 'head -c 500 model.sig >t; mv t model.sig'
    fresh
    must "$signer signature" "${signer}_sign" "$work/ours.pem" "$work/model" "$work/model.sig"
    refused "another key, $signer signature" "$work/other.pub.pem"
done

# Where we are stricter: what the specification leaves out of a signature.
fresh
must "their signature" their_sign "$work/ours.pem" "$work/model" "$work/model.sig"
mkdir "$work/model/.github" && printf x >"$work/model/.github/payload"
must "they overlook an unsigned file in .github" their_verify "$work/ours.pub.pem" "$work/model" "$work/model.sig"
must_not "we refuse it" 6 our_verify "$work/ours.pub.pem" "$work/model" "$work/model.sig"
must "we overlook it when asked to" "$oms" verify "$work/model" "$work/model.sig" "$work/ours.pub.pem" --allow-git

echo "model signing: $checks checks passed against $("$python" -m pip list 2>/dev/null | awk '$1 == "model-signing" {print $1, $2}')"
