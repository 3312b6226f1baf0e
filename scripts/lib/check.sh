# shellcheck shell=bash
# Format and lint.

# Ours, tracked or about to be: NUL-terminated, relative to the root.
cpp_files() { source_files '*.cc' '*.h' '*.c'; }

source_files() {
  cd "$ROOT" && git ls-files -z --cached --others --exclude-standard --deduplicate -- "$@" |
    while IFS= read -r -d '' file; do
      # A file that was removed from the work tree is still in the index.
      [[ -f $file ]] && printf '%s\0' "$file"
    done
  return 0
}

shell_files() {
  source_files ':(glob)scripts/*' ':!scripts/requirements.txt' 'scripts/lib/*.sh' .ci/run \
    ':(glob)tests/*/run' ':(glob)tests/conformance/*/run'
}

check_format() { cpp_files | xargs -0 --no-run-if-empty clang-format-19 --dry-run -Werror; }

check_proto() { cd "$ROOT" && "$VENV/bin/buf" lint; }

check_shell() { cd "$ROOT" && shell_files | xargs -0 shellcheck -x; }

# Types as with the oldest Python that mypy knows and the newest; and nothing that Python 3.9 has not.
check_python() (
  cd "$ROOT/client/python" && "$VENV/bin/mypy" && "$VENV/bin/mypy" --python-version 3.13 &&
    "$VENV/bin/vermin" --quiet --no-tips --eval-annotations --target=3.9- --violations ckptd
)

check_cpp() { "$VENV/bin/python" "$ROOT/scripts/lib/lint.py" "$1" "$JOBS"; }
