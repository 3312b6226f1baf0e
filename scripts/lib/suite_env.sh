# shellcheck shell=bash
# Environments of their own for suites that want another torch, or what is too large for .venv.
# They go to $VENV, which is .venv until the caller sets it. After install.sh.

# pinned NAME...: as scripts/requirements.txt has them.
pinned() { grep -E "^($(IFS='|' && echo "$*"))==" "$ROOT/scripts/requirements.txt"; }

# suite_venv SENTENCE PACKAGE...: makes $VENV with those packages, unless it has them.
suite_venv() { suite_venv_by make_suite_venv "$@"; }

# suite_venv_above BASE SENTENCE PACKAGE...: the same above the environment BASE, which it sees.
suite_venv_above() {
  SUITE_BASE=$1
  shift
  suite_venv_by make_suite_venv_above "$@"
}

suite_venv_by() {
  local make=$1 sentence=$2
  shift 2
  [[ $(cat "$VENV/stamp" 2>/dev/null) == "$(printf '%s\n' "$ROOT" "$@")" ]] && return
  run_logged suite "$sentence" "$make" "$@"
}

make_suite_venv() {
  /usr/bin/python3 -m venv --clear "$VENV" && venv_install "$@" &&
    printf '%s\n' "$ROOT" "$@" >"$VENV/stamp"
}

make_suite_venv_above() {
  "$SUITE_BASE/bin/python" -m venv --clear "$VENV" &&
    printf '%s\n' "$SUITE_BASE"/lib/python3*/site-packages \
      >"$(echo "$VENV"/lib/python3*)/site-packages/below.pth" &&
    "$VENV/bin/pip" install --quiet "$@" && printf '%s\n' "$ROOT" "$@" >"$VENV/stamp"
}
