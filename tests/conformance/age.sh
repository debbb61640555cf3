#!/usr/bin/env bash
# rage (PyPI's pyrage) as a referee of what is encrypted at rest: it reads what limbeck encrypted, limbeck reads what it
# encrypted, and of changed and shortened files neither reads anything. With age or rage on the PATH, the program too.
#
#   tests/conformance/age.sh VENV LIMBECK ARTIFACT
#
# VENV is a folder for a Python environment, made and filled where needed (network: PyPI only then). ARTIFACT is an artifact's
# folder, with its manifest.
set -euo pipefail
venv=${1:?usage: tests/conformance/age.sh VENV LIMBECK ARTIFACT}
limbeck=$(realpath "${2:?usage: tests/conformance/age.sh VENV LIMBECK ARTIFACT}")
artifact=$(realpath "${3:?usage: tests/conformance/age.sh VENV LIMBECK ARTIFACT}")
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import pyrage' 2>/dev/null || "$venv/bin/pip" install --quiet pyrage==1.4.0
exec "$venv/bin/python" "$here/age.py" "$limbeck" "$artifact"
