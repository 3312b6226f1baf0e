# shellcheck shell=bash
# Configures and builds.

# Everything but the tests.
# shellcheck disable=SC2034  # for scripts/build
PRODUCTS=(ckptd ckptctl ckptd_copy ckptd_client ckptd_example_train ckptd_python_proto)

# configure BUILD_DIR CMAKE_ARGUMENT...: only where the arguments are not those of the last time;
# what changes in CMakeLists.txt is ninja's to notice.
configure() {
  local dir=$1 arguments launcher
  shift
  # Without these ccache passes on whatever uses precompiled headers.
  launcher="env;CCACHE_SLOPPINESS=pch_defines,time_macros;ccache"
  arguments=("$@" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_COMPILER=clang-19
    -DCMAKE_CXX_COMPILER=clang++-19 "-DCMAKE_C_COMPILER_LAUNCHER=$launcher"
    "-DCMAKE_CXX_COMPILER_LAUNCHER=$launcher")
  [[ -f $dir/build.ninja && $(cat "$dir/configured" 2>/dev/null) == "$ROOT ${arguments[*]}" ]] &&
    return
  mkdir -p "$dir"
  run_logged "configure-${dir##*/}" "Configuring ${dir##*/}" \
    cmake --fresh -S "$ROOT" -B "$dir" -G Ninja "${arguments[@]}" &&
    echo "$ROOT ${arguments[*]}" >"$dir/configured"
}

# compile BUILD_DIR [TARGET...]
compile() {
  local dir=$1
  shift
  run_logged "build-${dir##*/}" "Compiling ${dir##*/}" ninja -C "$dir" -j "$JOBS" "$@"
}

# The client is installed editable: its sources are used in place.
install_client() {
  local key
  key=$(sha256sum <"$ROOT/client/python/pyproject.toml")
  [[ $(cat "$VENV/client-stamp" 2>/dev/null) == "$key" ]] && return
  run_logged python-client "Installing the Python client into .venv" \
    "$VENV/bin/pip" install --no-deps --no-build-isolation --editable "$ROOT/client/python" &&
    echo "$key" >"$VENV/client-stamp"
}

# build BUILD_DIR SANITIZER [TARGET...]: all of it where no target is named. SANITIZER may be empty.
build() {
  local dir=$1 sanitizer=$2
  shift 2
  configure "$dir" -DCKPTD_SANITIZE="$sanitizer" && compile "$dir" "$@" &&
    { [[ -n $sanitizer ]] || install_client; }
}
