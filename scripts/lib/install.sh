# shellcheck shell=bash
# Installs what the build, the tests and the demo need: packages from apt, Python packages into
# .venv, grpcurl into build/tools. Each step does nothing when there is nothing to do.

APT_PACKAGES=(
  ca-certificates git
  # Build and checks
  cmake ninja-build g++ clang-19 clang-format-19 libclang-rt-19-dev llvm-19 ccache
  pkg-config shellcheck valgrind
  # Libraries
  libabsl-dev libbenchmark-dev libcli11-dev libfuse3-dev libgmock-dev libgrpc++-dev libgtest-dev libisal-dev libprotobuf-dev
  libspdlog-dev libsqlite3-dev libtorch-dev liburing-dev protobuf-compiler protobuf-compiler-grpc
  # Python client, and grpcurl to talk to the daemon as a person would
  golang-go python3-venv
)

UV_VERSION=0.13.9
GRPCURL_VERSION=v1.8.9

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo --preserve-env=http_proxy,https_proxy,no_proxy "$@"
  else
    die "$1 needs root: run as root, or install sudo"
  fi
}

missing_packages() {
  comm -23 <(printf '%s\n' "${APT_PACKAGES[@]}" | sort -u) \
    <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${APT_PACKAGES[@]}" 2>/dev/null |
      sed -n 's/ installed$//p' | sort -u)
}

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@"; }

apt_install() {
  apt_get update -q &&
    apt_get install -q -y --no-install-recommends "$@"
}

install_packages() {
  local missing
  command -v apt-get >/dev/null || die "apt-get not found: this needs Debian 12 or a descendant"
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]} == 0)) && return
  run_logged apt "Installing ${#missing[@]} Debian packages" apt_install "${missing[@]}"
}

# pip_setting NAME: what pip's environment or pip.conf says, empty where they say nothing.
pip_setting() {
  local section value
  for section in :env: install global; do
    value=$(sed -n "s/^$section\.$1='\(.*\)'\$/\1/p" <<<"$PIP_SETTINGS")
    [[ -n $value ]] && break
  done
  printf '%s' "$value"
}

# uv reads neither PIP_* nor pip.conf: whoever has told pip where packages come from has not told
# uv. Prints NAME=VALUE for env(1).
uv_environment() {
  local PIP_SETTINGS value
  PIP_SETTINGS=$("$VENV/bin/pip" config list 2>/dev/null || true)
  value=$(pip_setting index-url); [[ -n $value ]] && printf '%s\n' "UV_DEFAULT_INDEX=$value"
  value=$(pip_setting extra-index-url); [[ -n $value ]] && printf '%s\n' "UV_INDEX=$value"
  value=$(pip_setting find-links); [[ -n $value ]] && printf '%s\n' "UV_FIND_LINKS=${value// /,}"
  value=$(pip_setting trusted-host); [[ -n $value ]] && printf '%s\n' "UV_INSECURE_HOST=$value"
  value=$(pip_setting cert); [[ -n $value ]] && printf '%s\n' "SSL_CERT_FILE=$value"
  return 0
}

# venv_install ARGUMENT...: pip install, by uv, which is four times as fast, or else by pip itself.
venv_install() {
  local environment
  mapfile -t environment < <(uv_environment)
  "$VENV/bin/pip" install --quiet "uv==$UV_VERSION" &&
    env "${environment[@]}" "$VENV/bin/uv" pip install --python "$VENV/bin/python" "$@" && return
  echo "uv failed; trying pip"
  "$VENV/bin/pip" install "$@"
}

make_venv() {
  # Debian's own python3, whatever else comes first on PATH. A virtual environment knows its own
  # path, so one that was moved or half made is made anew.
  if [[ $(head -n 1 "$VENV/stamp" 2>/dev/null) != "$ROOT" ]]; then
    /usr/bin/python3 -m venv --clear "$VENV" || return
  fi
  venv_install -r "$ROOT/scripts/requirements.txt" &&
    printf '%s\n' "$ROOT" "$1" >"$VENV/stamp"
}

install_python() {
  local key
  key=$({ /usr/bin/python3 --version; cat "$ROOT/scripts/requirements.txt"; } | sha256sum)
  [[ $(cat "$VENV/stamp" 2>/dev/null) == "$ROOT"$'\n'"$key" ]] && return
  run_logged python "Installing torch, Lightning and the rest of scripts/requirements.txt" \
    make_venv "$key"
}

install_grpcurl() {
  [[ -x $TOOLS/grpcurl && $(cat "$TOOLS/grpcurl.version" 2>/dev/null) == "$GRPCURL_VERSION" ]] &&
    return
  mkdir -p "$TOOLS"
  # Debian's Go, whatever else comes first on PATH: this grpcurl is the last one it can build.
  run_logged grpcurl "Building grpcurl $GRPCURL_VERSION" env GOBIN="$TOOLS" /usr/bin/go install \
    "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL_VERSION"
  echo "$GRPCURL_VERSION" >"$TOOLS/grpcurl.version"
}

install_all() {
  install_packages
  install_python
  install_grpcurl
}
