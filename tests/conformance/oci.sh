#!/bin/sh
# An exported image pushed to a real registry and pulled back: the digest unchanged, every file the one that was signed.
#
#   tests/conformance/oci.sh ARTIFACT KEY.pub.pem
#
# Needs Debian's skopeo and docker-registry on the PATH; runs a registry on a free port of this machine.
set -eu
artifact=${1:?usage: tests/conformance/oci.sh ARTIFACT KEY.pub.pem}
key=${2:?usage: tests/conformance/oci.sh ARTIFACT KEY.pub.pem}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
limbeck=${CARGO_TARGET_DIR:-$root/target}/release/limbeck
for tool in skopeo docker-registry python3; do
    command -v "$tool" >/dev/null || { echo "$tool is not here (Debian: apt-get install skopeo docker-registry)" >&2; exit 1; }
done
work=$(mktemp -d)
registry=
trap '[ -z "$registry" ] || kill "$registry" 2>/dev/null; rm -rf "$work"' EXIT
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > "$work/registry.yml" <<END
version: 0.1
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: 127.0.0.1:$port}
END
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
sleep 1
"$limbeck" export "$artifact" --key "$key" --form oci --out "$work/image" --tag v1 --json > "$work/said.json"
digest=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["digest"])' "$work/said.json")
at=docker://127.0.0.1:$port/limbeck/model
skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$work/image:v1" "$at:v1"
skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$work/image:v1.sig" "$at:v1.sig"
there=$(skopeo inspect --raw --tls-verify=false "$at:v1" | sha256sum | cut -d' ' -f1)
[ "sha256:$there" = "$digest" ] || { echo "the registry has sha256:$there, exported was $digest" >&2; exit 1; }
skopeo --insecure-policy copy --quiet --src-tls-verify=false "$at:v1" "dir:$work/pulled"
mkdir "$work/artifact"
python3 - "$work/pulled" "$work/artifact" <<'END'
import json, pathlib, shutil, sys
pulled, artifact = map(pathlib.Path, sys.argv[1:])
for layer in json.loads((pulled / "manifest.json").read_text())["layers"]:
    target = artifact / layer["annotations"]["org.cncf.model.filepath"]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(pulled / layer["digest"].removeprefix("sha256:"), target)
END
"$limbeck" verify "$work/artifact" --key "$key"
echo "pushed, pulled back, digest unchanged, and the signature verifies"
