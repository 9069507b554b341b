#!/usr/bin/env bash
# What takes the bytes of the shared library: ffi/bytes.sh [--small]
#
# Its sections, and its code by crate and set of kernels: what a crate is instantiated with counts as the first name does.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CARGO_PROFILE_EMBED_STRIP=none "$(dirname "$0")/install.sh" "$work" "$@" >&2
library=$(echo "$work"/lib/libtidbit.so.*)
size -A "$library" |
  awk '/^\.(text|rodata|data.rel.ro|rela.dyn|relr.dyn|eh_frame|gcc_except_table) / { printf "%9d %s\n", $2, $1 }' | sort -rn
nm -S -C --size-sort "$library" | perl -ne '
  /^\S+ (\S+) [tT] [^\w]*(tidbit_runtime::kernels::table::\w+|\w+)/ and $bytes{$2} += hex $1;
  END { printf "%9d %s\n", $bytes{$_}, $_ for sort { $bytes{$b} <=> $bytes{$a} } keys %bytes }' | head -n 20
strip "$library" -o "$work/stripped"
echo "$(wc -c <"$work/stripped") bytes, stripped"
