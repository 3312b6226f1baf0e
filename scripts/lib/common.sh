# shellcheck shell=bash
# shellcheck disable=SC2034  # the names below are for the scripts that source this file
#
# What every script shares: where things are, and one line on the screen for each long step.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LOG_DIR=$ROOT/build/log
VENV=$ROOT/.venv
TOOLS=$ROOT/build/tools
JOBS=$(nproc)

# A process that imports torch takes twice as long where it is compiled anew each time.
unset PYTHONDONTWRITEBYTECODE

say() { printf '%s\n' "$*"; }

# The usage line of the script that runs, from its head.
usage() {
  sed -n 's/^# usage: /usage: /p' "${BASH_SOURCE[-1]}" >&2
  exit 2
}

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# run_logged NAME SENTENCE COMMAND...: says SENTENCE, keeps the output in build/log/NAME.log and
# shows its end only when COMMAND fails, with COMMAND's status. Bash ignores `set -e` inside COMMAND
# here, so functions that are run so join their steps with &&.
run_logged() {
  local log=$LOG_DIR/$1.log sentence=$2 status=0 start=$SECONDS
  shift 2
  mkdir -p "$LOG_DIR"
  printf '%s ... ' "$sentence"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if ((status == 0)); then
    say "$((SECONDS - start)) s"
  else
    say "failed with status $status after $((SECONDS - start)) s; the end of $log:"
    tail -n 60 "$log"
  fi
  return "$status"
}
