#!/usr/bin/env bash
# The kernel tests for aarch64, under qemu: on a processor with products of matrices, one with dot products, and one without.
#
# Needs cargo; a cross linker and qemu come from apt-get where they are missing. The standard library for aarch64 comes
# from rustup or, where rustup cannot give it, from Debian with Debian's compiler (DEBIAN_RUSTC=1 asks for that one).
# All that apt-get need not install lies in the target folder.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
mkdir -p "$CARGO_TARGET_DIR"
compiler=$(realpath "$CARGO_TARGET_DIR")/aarch64-rustc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

fail() { echo "error: $*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() { "$@" >"$log" 2>&1; }

if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
  packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
  quietly as_root apt-get update &&
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}" ||
    fail "apt-get cannot install ${packages[*]}: $(tail -n 1 "$log")"
fi

# Debian's compiler with its standard libraries for this machine and for aarch64, unpacked, not installed.
debian_compiler() {
  local host std llvm deb
  needs() { apt-cache depends "$1" | sed -n "s/.*Depends: \($2\)\$/\1/p" | head -n 1; }
  if [ ! -d "$compiler" ]; then
    quietly as_root dpkg --add-architecture arm64 && quietly as_root apt-get update || return 1
    host=$(dpkg --print-architecture)
    std=$(needs libstd-rust-web-dev 'libstd-rust-web-[0-9.]*')
    llvm=$(needs "$std" 'libllvm[0-9]*')
    mkdir -p "$compiler.part/deb"
    (cd "$compiler.part/deb" && quietly apt-get download rustc-web "$llvm" {"$std",libstd-rust-web-dev}:{"$host",arm64}) ||
      return 1
    for deb in "$compiler.part"/deb/*.deb; do dpkg -x "$deb" "$compiler.part" || return 1; done
    rm -r "$compiler.part/deb"
    mv "$compiler.part" "$compiler"
  fi
  LD_LIBRARY_PATH="$compiler/usr/lib/$(uname -m)-linux-gnu"
  export LD_LIBRARY_PATH RUSTC="$compiler/usr/bin/rustc"
}
if [ -n "${DEBIAN_RUSTC:-}" ] || ! quietly rustup target add "$target"; then
  debian_compiler || fail "no standard library for $target, neither from rustup nor from apt-get: $(tail -n 1 "$log")"
fi
"${RUSTC:-rustc}" --version
qemu-aarch64 --version | head -n 1

# Which instruction set is the best one is part of the test: a row that is not chosen is not tested. The first processor runs all
# rows. The others are there for what a row must not do, use instructions that they lack, and a row shows that in few cases.
# Without the reader of tokenizers, which is most of what there would be to compile.
kernels() {
  printf '\n== the kernel tests on %s, whose best instruction set is %s\n' "$1" "$2"
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $1 -L /usr/aarch64-linux-gnu" TIDBIT_TEST_BEST_ISA=$2 \
    cargo test --locked --quiet -p tidbit-runtime --no-default-features --lib --target "$target" kernels
}
kernels max i8mm
export PROPTEST_CASES=15
kernels neoverse-n1 dotprod
kernels cortex-a72 neon
