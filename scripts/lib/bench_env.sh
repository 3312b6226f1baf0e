# shellcheck shell=bash
# The environment of scripts/bench: all of .venv, and the peers that it lacks.

# make_bench_env DIR: a peer that cannot be installed is left out.
make_bench_env() {
  local dir=$1 peer site
  /usr/bin/python3 -m venv --clear --without-pip "$dir" || return
  site=$(echo "$dir"/lib/python3*/site-packages)
  # As a site folder and not a mere path, for .venv has the client by a .pth file of its own.
  echo "import site; site.addsitedir('$(echo "$VENV"/lib/python3*/site-packages)')" >"$site/venv.pth"
  while read -r peer; do
    "$VENV/bin/pip" --python "$dir/bin/python" install --no-deps --force-reinstall "$peer" ||
      echo "$peer: cannot be installed"
  done < <(grep -v '^#' "$ROOT/tests/bench/peers.txt")
}

# install_bench_env DIR: only where .venv or the list of peers has changed.
install_bench_env() {
  local dir=$1 key
  key=$(cat "$VENV/stamp" "$ROOT/tests/bench/peers.txt" | sha256sum)
  [[ $(cat "$dir/stamp" 2>/dev/null) == "$key" ]] && return
  run_logged bench-env "Installing what is compared with" make_bench_env "$dir" &&
    echo "$key" >"$dir/stamp"
}
