#!/usr/bin/env bash
# The certificates of distill/tests/endpoint_tls.rs: an authority that nobody trusts, and a server on loopback that it vouches for. The
# keys guard nothing. Valid for a hundred years, so that the test does not expire.
set -euo pipefail
cd "$(dirname "$0")"
ca=$(mktemp) && trap 'rm -f "$ca"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj "/CN=limbeck test authority" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -keyout "$ca" -out ca.pem 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=localhost" -keyout server.key -out server.csr 2>/dev/null
openssl x509 -req -in server.csr -CA ca.pem -CAkey "$ca" -days 36500 -out server.pem 2>/dev/null \
    -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth')
rm server.csr
