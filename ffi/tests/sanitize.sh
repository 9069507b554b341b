#!/usr/bin/env bash
# The C test program under sanitizers, or under valgrind: ffi/tests/sanitize.sh [address|thread|valgrind]...
#
# `address` finds leaks too. The sanitizers need a nightly feature of rustc, which RUSTC_BOOTSTRAP allows on stable, and a C
# compiler with the matching runtime. Libraries go to target/sanitize-*; nothing else is touched.
set -euo pipefail
cd "$(dirname "$0")/../.."
host=$(rustc -vV | sed -n 's/^host: //p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

model="$work/gpt2-mini.tidbit"
cargo run --quiet -- convert models/gpt2-mini -o "$model" --quant q8 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }

[ $# -gt 0 ] || set -- address thread
for kind in "$@"; do
  mkdir "$work/$kind"
  case $kind in
    valgrind)
      cargo build --quiet -p tidbit-ffi
      cc -g -std=c99 -I ffi/include ffi/tests/api.c "${CARGO_TARGET_DIR:-target}/debug/libtidbit.a" \
        -lpthread -ldl -lm -o "$work/$kind/api"
      valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite,possible \
        "$work/$kind/api" "$model" "$work/$kind"
      ;;
    address | thread)
      flags="-Zsanitizer=$kind"
      # std is not rebuilt: its own accesses are not seen, those of its users are.
      [ "$kind" = thread ] && flags+=" -Cunsafe-allow-abi-mismatch=sanitizer"
      RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/sanitize-$kind" \
        cargo build --quiet -p tidbit-ffi --target "$host"
      library="${CARGO_TARGET_DIR:-target}/sanitize-$kind/$host/debug/libtidbit.a"
      if [ "$kind" = thread ]; then
        # The compiler's own runtime may be older than what rustc's code calls; rustc brings one.
        runtime=$(echo "$(rustc --print sysroot)/lib/rustlib/$host/lib"/librustc-*_rt.tsan.a)
        cc -g -std=c99 -fsanitize=thread -I ffi/include -c ffi/tests/api.c -o "$work/$kind/api.o"
        cc -pie "$work/$kind/api.o" "$library" -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive -Wl,--export-dynamic \
          -lpthread -ldl -lm -lrt -o "$work/$kind/api"
      else
        cc -g -std=c99 -fsanitize=address -I ffi/include ffi/tests/api.c "$library" -lpthread -ldl -lm -o "$work/$kind/api"
      fi
      ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 TSAN_OPTIONS=halt_on_error=1 \
        "$work/$kind/api" "$model" "$work/$kind"
      ;;
    *)
      echo "error: unknown kind $kind, expected address, thread or valgrind" >&2
      exit 2
      ;;
  esac
  echo "$kind: no finding"
done
