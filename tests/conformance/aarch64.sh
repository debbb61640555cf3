#!/usr/bin/env bash
# Everything type-checks for 64-bit ARM on Linux, kernels and tests among it:
#
#   aarch64.sh [CARGO ARGUMENTS]
#   aarch64.sh -p limbeck-model --lib --tests     the room that speaks of processors: four minutes
#
# Wants the target's standard library: `rustup target add aarch64-unknown-linux-gnu`; and a C compiler for it, since a
# dependency has C parts (Debian: gcc-aarch64-linux-gnu). On such a machine itself, plain `./test` says more.
#
# Where rustup can't fetch it, Debian can: rustc and libstd-rust-dev:arm64 of a release that has the workspace's rust-version
# (1.97 in sid), unpacked with `dpkg -x` into one folder, named by RUSTC.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=aarch64-unknown-linux-gnu
echo 'pub fn f() {}' | "${RUSTC:-rustc}" --target $target --crate-type lib --emit=metadata -o "$(mktemp -d)/f.rmeta" - ||
    { echo "there is no standard library of $target: rustup target add $target"; exit 1; }
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/aarch64}"
[ $# -gt 0 ] || set -- --workspace --all-targets
exec cargo check --release --locked --target $target "$@"
