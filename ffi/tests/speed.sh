#!/usr/bin/env bash
# What the C path costs beside `tidbit run`, and how fast a prefill is cancelled: ffi/tests/speed.sh [SHAPE [ROUNDS]]
#
# Random weights in the shape of GPT-2 124M, q4 and q8; the library that ffi/install.sh makes, at its defaults, and the
# binary take turns. Prints medians of nanoseconds for each token, and the C path's excess.
set -euo pipefail
cd "$(dirname "$0")/../.."
shape=${1:-gpt2} rounds=${2:-15} tokens=100
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ffi/install.sh "$work" >&2
cc -O2 -std=c99 -I "$work/include" ffi/tests/speed.c -L "$work/lib" -ltidbit -Wl,-rpath,"$work/lib" -lpthread -o "$work/speed"
cargo build --release --quiet
tidbit=${CARGO_TARGET_DIR:-target}/release/tidbit
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
for quant in q4 q8; do
  model=$work/$quant.tidbit
  "$tidbit" bench --shape "$shape" --quant "$quant" --threads 1 --prefill 8 --decode 0 --repetitions 1 --save "$model" >/dev/null 2>&1
  for ((i = 0; i < rounds; i++)); do
    "$work/speed" "$model" $tokens >>"$work/c-$quant"
    "$tidbit" run "$model" --ids 0 --temperature 0 --ignore-eos -n $((tokens + 1)) --json --quiet |
      python3 -c 'import json, sys; t = json.load(sys.stdin)["timings"]; print(t["decode_ms"] * 1e6 / t["decode_tokens"])' \
        >>"$work/rust-$quant"
  done
  c=$(median "$work/c-$quant") rust=$(median "$work/rust-$quant")
  awk -v q="$quant" -v c="$c" -v r="$rust" \
    'BEGIN { printf "%s: C %.0f ns, Rust %.0f ns for each token: %+.2f %%\n", q, c, r, (c / r - 1) * 100 }'
  printf '%s: a prefill of 1,024 tokens ends within %s of its cancellation\n' "$quant" "$("$work/speed" "$model" 0 cancel)"
done
