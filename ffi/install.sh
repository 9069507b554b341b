#!/usr/bin/env bash
# Builds the C library and installs it: ffi/install.sh PREFIX [--profile NAME] [--small]
#
# PREFIX gets include/tidbit.h, lib/libtidbit.{so,a} (or .dylib) with its soname, and files for pkg-config and CMake. The
# profile is `embed`: small and stripped. With --small, models whose tokenizer is kept as JSON (those that the converter could
# not turn into tables) are answered by TIDBIT_UNSUPPORTED, and the library is three fifths as large. Nothing in PREFIX names PREFIX, so it can be moved as a whole.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 2; }
prefix=$1
profile=embed
features=()
shift
while [ $# -gt 0 ]; do
  case $1 in
    --profile) profile=$2; shift 2 ;;
    --small) features=(--no-default-features); shift ;;
    *) echo "error: unknown argument $1" >&2; exit 2 ;;
  esac
done
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
cd "$here/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The number of the binary interface; a new one only when old programs would break.
abi=$(sed -n 's/^#define TIDBIT_ABI_VERSION \([0-9]*\)$/\1/p' ffi/include/tidbit.h)
case $(uname -s) in
  Darwin)
    shared=libtidbit.$abi.dylib link=libtidbit.dylib built=libtidbit.dylib private="-framework CoreFoundation"
    name_it=(-C "link-arg=-Wl,-install_name,@rpath/$shared")
    ;;
  *)
    shared=libtidbit.so.$abi link=libtidbit.so built=libtidbit.so private="-lpthread -ldl -lm"
    name_it=(-C "link-arg=-Wl,-soname,$shared")
    # Relocations in a sixtieth of the space, where the loader reads them so; a linker that does not know them leaves them.
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true)
    if [ "$(printf '%s\n' "glibc 2.36" "$libc" | sort -V | head -n 1)" = "glibc 2.36" ]; then
      name_it+=(-C link-arg=-Wl,-z,pack-relative-relocs)
    fi
    ;;
esac

target=${CARGO_TARGET_DIR:-target}
folder=$target/$profile
[ "$profile" = dev ] && folder=$target/debug
# Both at once: what takes the time, optimizing the whole, is done once for them. The linker's arguments are the shared one's.
cargo rustc --locked --profile "$profile" -p tidbit-ffi "${features[@]}" --lib --crate-type cdylib,staticlib -- "${name_it[@]}"
mkdir -p "$prefix"/{include,lib/pkgconfig,lib/cmake/tidbit}
install -m 755 "$folder/$built" "$prefix/lib/$shared"
ln -sf "$shared" "$prefix/lib/$link"
install -m 644 "$folder/libtidbit.a" "$prefix/lib/libtidbit.a"
install -m 644 ffi/include/tidbit.h "$prefix/include/tidbit.h"

fill() {
  sed -e "s|@VERSION@|$version|; s|@SHARED@|$shared|; s|@SONAME@|$shared|; s|@PRIVATE@|$private|" "ffi/dist/$1.in" >"$2/$1"
}
fill tidbit.pc "$prefix/lib/pkgconfig"
fill tidbit-config.cmake "$prefix/lib/cmake/tidbit"
fill tidbit-config-version.cmake "$prefix/lib/cmake/tidbit"
echo "$prefix/lib/$shared: $(wc -c <"$prefix/lib/$shared") bytes, tidbit $version, ABI $abi"
