#!/usr/bin/env bash
# Runs every example and compares what it writes with what the reference wrote: ffi/examples/run.sh [LANGUAGE]...
#
# The library is built and installed into a temporary folder, as a user would have it. A language whose tools are missing is
# skipped, loudly; with TIDBIT_EXAMPLES_REQUIRE set to a list of languages, missing tools of those are an error.
# TIDBIT_EXAMPLES_PREFIX names a folder where the library is installed already, TIDBIT_EXAMPLES_MODEL an f32 file of
# models/gpt2-mini, TIDBIT_EXAMPLES_PROFILE another profile than `release`.
set -uo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
all=(c c-static cpp cmake python node java go ruby lua php csharp)
[ $# -gt 0 ] && wanted=("$@") || wanted=("${all[@]}")

fail() { echo "error: $*" >&2; exit 1; }

profile=${TIDBIT_EXAMPLES_PROFILE:-release}
model=${TIDBIT_EXAMPLES_MODEL:-$work/model.tidbit}
if [ -n "${TIDBIT_EXAMPLES_PREFIX:-}" ]; then
  prefix=$TIDBIT_EXAMPLES_PREFIX
else
  ffi/install.sh "$prefix" --profile "$profile" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "the library was not built"; }
  tail -n 1 "$work/log" | sed "s|$prefix/||"
fi
if [ ! -f "$model" ]; then
  cargo run --locked --profile "$profile" --quiet -- convert models/gpt2-mini -o "$model" --quant f32 >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; fail "the model was not converted"; }
fi

# With TIDBIT_EXAMPLES_INSTALL, what is missing comes from apt-get where that works.
if [ -n "${TIDBIT_EXAMPLES_INSTALL:-}" ] && command -v apt-get >/dev/null; then
  as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
  packages=()
  while read -r tool package; do
    command -v "$tool" >/dev/null || packages+=("$package")
  done <<'END'
pkg-config pkg-config
cmake cmake
python3 python3-venv
node nodejs
npm npm
java default-jdk-headless
go golang-go
ruby ruby
luajit luajit
php php-cli
mcs mono-mcs
mono mono-runtime
END
  [ -f "${JNA_JAR:-/usr/share/java/jna.jar}" ] || packages+=(libjna-java)
  if [ ${#packages[@]} -gt 0 ]; then
    { as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"; } \
      >"$work/log" 2>&1 || echo "warning: apt-get cannot install ${packages[*]}: $(tail -n 1 "$work/log")" >&2
  fi
fi

export LD_LIBRARY_PATH=$prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export DYLD_LIBRARY_PATH=$LD_LIBRARY_PATH
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
export TIDBIT_LIBRARY=$prefix/lib/libtidbit.so
[ -e "$TIDBIT_LIBRARY" ] || TIDBIT_LIBRARY=$prefix/lib/libtidbit.dylib
prompt="Once upon a time"
args=("$model" "$prompt" 10)

need() {
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { echo "needs $tool"; return 1; }
  done
}

# Each says what it needs on failure of the first line, then builds and runs.
build_c() { need cc pkg-config || return 77; cc -Wall -Wextra -Werror ffi/examples/c/stream.c $(pkg-config --cflags --libs tidbit) -o "$work/c" && "$work/c" "${args[@]}"; }
build_c-static() { need cc || return 77; cc ffi/examples/c/stream.c -I "$prefix/include" "$prefix/lib/libtidbit.a" -lpthread -ldl -lm -o "$work/c-static" && env -u LD_LIBRARY_PATH "$work/c-static" "${args[@]}"; }
build_cpp() { need c++ pkg-config || return 77; c++ -std=c++17 -Wall -Wextra -Werror ffi/examples/cpp/stream.cpp $(pkg-config --cflags --libs tidbit) -o "$work/cpp" && "$work/cpp" "${args[@]}"; }
build_cmake() {
  need cmake c++ || return 77
  cmake -S ffi/examples/cpp -B "$work/cmake" -DCMAKE_PREFIX_PATH="$prefix" >"$work/cmake.log" 2>&1 &&
    cmake --build "$work/cmake" >>"$work/cmake.log" 2>&1 || { cat "$work/cmake.log" >&2; return 1; }
  "$work/cmake/stream" "${args[@]}"
}
build_python() {
  need python3 || return 77
  python3 -m venv "$work/venv" >"$work/venv.log" 2>&1 || { echo "needs python3-venv"; return 77; }
  cp -r ffi/python "$work/package"  # pip builds where the package lies
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$work/package" >"$work/venv.log" 2>&1 || { cat "$work/venv.log" >&2; return 1; }
  # The package brings its own library.
  env -u TIDBIT_LIBRARY -u LD_LIBRARY_PATH "$work/venv/bin/python" ffi/examples/python/stream.py "${args[@]}" &&
    env -u TIDBIT_LIBRARY "$work/venv/bin/python" ffi/python/tests/test_tidbit.py "$model" >&2
}
build_node() {
  need node npm || return 77
  mkdir "$work/node" && cp ffi/examples/node/stream.mjs "$work/node/" && echo '{"type": "module"}' >"$work/node/package.json"
  (cd "$work/node" && npm install --silent --no-audit --no-fund --install-links "$root/ffi/node" && node stream.mjs "${args[@]}")
}
build_java() {
  need java || return 77
  local jna=${JNA_JAR:-/usr/share/java/jna.jar}
  [ -f "$jna" ] || { echo "needs JNA (libjna-java, or JNA_JAR)"; return 77; }
  java -Djna.library.path="$prefix/lib" -cp "$jna" ffi/examples/java/Stream.java "${args[@]}"
}
build_go() { need go pkg-config cc || return 77; (cd ffi/examples/go && GOFLAGS=-mod=mod GOCACHE="$work/go" go build -o "$work/go-stream" . && "$work/go-stream" "${args[@]}"); }
build_ruby() { need ruby || return 77; ruby ffi/examples/ruby/stream.rb "${args[@]}"; }
build_lua() { need luajit || return 77; luajit ffi/examples/lua/stream.lua "${args[@]}"; }
build_php() {
  need php || return 77
  [[ $(php -m) == *FFI* ]] || { echo "needs the FFI extension of PHP"; return 77; }
  php -d ffi.enable=1 ffi/examples/php/stream.php "${args[@]}"
}
build_csharp() { need mcs mono || return 77; mcs -out:"$work/Stream.exe" ffi/examples/csharp/Stream.cs && mono "$work/Stream.exe" "${args[@]}"; }

passed=() skipped=() failed=()
for language in "${wanted[@]}"; do
  written=$("build_$language" 2>"$work/stderr")
  code=$?
  text=${written#"$prompt"}
  if [ $code -eq 77 ]; then
    echo "SKIPPED $language: $written"
    skipped+=("$language")
    case " ${TIDBIT_EXAMPLES_REQUIRE:-} " in *" $language "*) failed+=("$language (missing tools)") ;; esac
  elif [ $code -eq 0 ] && [ "$written" != "$text" ] && [ ${#text} -gt 20 ] &&
    grep -qF "\"text\": \"$text" tests/data/gpt2-mini/greedy.json; then
    echo "ok      $language: $written"
    passed+=("$language")
  else
    echo "FAILED  $language (exit code $code): $written"
    sed 's/^/        /' "$work/stderr"
    failed+=("$language")
  fi
done
echo "${#passed[@]} passed: ${passed[*]}"
[ ${#skipped[@]} -eq 0 ] || echo "${#skipped[@]} SKIPPED: ${skipped[*]}"
[ ${#failed[@]} -eq 0 ] || fail "${#failed[@]} failed: ${failed[*]}"
