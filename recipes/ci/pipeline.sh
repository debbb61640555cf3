#!/usr/bin/env bash
# Trains, gates, signs and promotes one recipe; what github.yml and gitlab-ci.yml call. Usage: pipeline.sh RECIPE
#
#   LIMBECK_STORE           folder of the store: a disk of the runner's or a network file system, not a cache
#   LIMBECK_SIGNING_KEY     private key, PEM (a secret); LIMBECK_KEY_PASSPHRASE where it has a passphrase
#   LIMBECK_CHANNEL         staging unless set
#   LIMBECK_HEAD            the log's head that the last pipeline printed; the log must still hold it
#   LIMBECK_OUT             folder for gates.xml, run.json and the next head; out unless set
#
# Exit codes are limbeck's: 4 a gate failed, 5 reviews or approvals are missing, 6 something is not what was signed, 7 too
# little evidence. Run again, it goes on where it stopped.
set -euo pipefail
recipe=${1:?usage: pipeline.sh RECIPE}
store=${LIMBECK_STORE:?set LIMBECK_STORE to the folder of the store}
channel=${LIMBECK_CHANNEL:-staging}
out=${LIMBECK_OUT:-out}
mkdir -p "$out"

# The key is a file for as long as this runs, readable by its owner only, and never in the log.
umask 077
key=$(mktemp)
trap 'rm -f "$key"' EXIT
printf '%s' "${LIMBECK_SIGNING_KEY:?set LIMBECK_SIGNING_KEY to the private key}" >"$key"
umask 022
settings=(--set "promote.store=$store" --set "promote.channel=$channel" --set "sign.key=$key")

# What is promoted rests on the log: first see that nobody cut it short.
if [ -n "${LIMBECK_HEAD:-}" ]; then
    limbeck log --store "$store" --expect-head "$LIMBECK_HEAD" >"$out/log.txt"
fi

# The gates' verdicts for the CI's own display; whatever they say, the run below says it by its exit code.
limbeck eval "$recipe" "${settings[@]}" --junit "$out/gates.xml" >"$out/eval.txt" || true

code=0
limbeck run "$recipe" "${settings[@]}" --json >"$out/run.json" || code=$?

if [ -d "$store/log" ]; then
    limbeck fsck --store "$store"
    # The last line is the head. Keep it where nobody who can write to the store can write: it is the next LIMBECK_HEAD.
    limbeck log --store "$store" | tail -n 1 | sed 's/.*head //' | tee "$out/head.txt"
fi
exit "$code"
