#!/bin/sh
# An artifact's SLSA provenance, test result and ML-BOM, read by the libraries that others read them with.
#
#   tests/conformance/provenance.sh VENV ARTIFACT
#
# VENV is a folder for a Python environment, made and filled where needed (network: PyPI only then).
set -eu
venv=${1:?usage: tests/conformance/provenance.sh VENV ARTIFACT}
artifact=${2:?usage: tests/conformance/provenance.sh VENV ARTIFACT}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import in_toto_attestation, cyclonedx, jsonschema' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet in-toto-attestation==0.9.3 'cyclonedx-python-lib[json-validation]==11.12.0'
exec "$venv/bin/python" "$here/provenance.py" "$artifact"
