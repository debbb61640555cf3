#!/usr/bin/env bash
# Everything type-checks for 64-bit ARM on Linux, kernels and tests among it:
#
#   aarch64.sh [CARGO ARGUMENTS]
#   aarch64.sh kernels             only the files that speak of processors, as a crate of their own: a minute, and no C compiler
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
if [ "${1:-}" = kernels ]; then
    crate=$(mktemp -d); trap 'rm -rf "$crate"' EXIT
    flex=$PWD/model/src/ops/flex
    mkdir "$crate/src" && cp Cargo.lock "$crate/"
    printf '[package]\nname = "kernels"\nversion = "0.1.0"\nedition = "2024"\n[workspace]\n[dependencies]\nrayon = "1.12"\n' > "$crate/Cargo.toml"
    grep '^gemm = ' Cargo.toml >> "$crate/Cargo.toml"
    cat > "$crate/src/lib.rs" <<RUST
#![allow(dead_code, unused_imports)]
pub mod ops {
    pub mod flex {
        #[path = "$flex/simd.rs"] pub mod simd;
        #[path = "$flex/buffer.rs"] pub mod buffer;
        #[path = "$flex/bf16/mod.rs"] pub mod bf16;
        #[path = "$flex/kernels.rs"] pub mod kernels;
        #[path = "$flex/compute.rs"] pub mod compute;
        pub mod layer { #[path = "$flex/layer/pointwise.rs"] pub mod pointwise; }
$(sed -n '/^pub(crate) enum FlexMatrix {/,/^}/p' "$flex/mod.rs")
    }
}
RUST
    cd "$crate"
    cargo check --release --target $target
    exit
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/aarch64}"
exec cargo check --release --locked --workspace --all-targets --target $target "$@"
