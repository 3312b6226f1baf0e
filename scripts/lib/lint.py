"""Runs clang-tidy over our own C++ files, only over those that changed since they last passed.

usage: lint.py BUILD_DIR JOBS

Needs a finished build: ninja knows then which headers each object was made of. A file that passed
leaves a stamp under BUILD_DIR/lint, named by a hash of all that its result hangs on.

Nearly all the time goes into reading headers. So files of one compile command are checked several at
a time, in a source that includes them. What is found there is looked for once more in each file by
itself, and only what is found then counts: two files may have the same name for different things.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLANG_TIDY = ROOT / ".venv/bin/clang-tidy"


def without_precompiled(words):
    """Returns a compile command without its precompiled headers: they are another compiler's, and
    a source is to include what it uses."""
    result = []
    words = iter(words)
    for word in words:
        if word != "-Xclang":
            result.append(word)
            continue
        option = next(words)
        if option in ("-include-pch", "-include"):
            next(words), next(words)  # -Xclang and the file
        else:
            result += [word, option]
    return result


def own_commands(build):
    """Yields the compile commands of files of this repository, each file once."""
    seen = set()
    for command in json.loads((build / "compile_commands.json").read_text()):
        file = pathlib.Path(command["file"])
        ours = file.is_relative_to(ROOT) and not file.is_relative_to(build)
        if ours and file.suffix in (".cc", ".c") and file not in seen:
            seen.add(file)
            words = without_precompiled(shlex.split(command["command"]))
            yield {**command, "command": shlex.join(words)}


def dependencies(build):
    """Maps each object to the files that it was made of, as ninja recorded them."""
    text = subprocess.run(
        ["ninja", "-C", build, "-t", "deps"], check=True, capture_output=True, text=True
    ).stdout
    result = {}
    for block in text.split("\n\n"):
        head, *files = block.strip().splitlines() or [""]
        result[head.split(":")[0]] = [(build / f.strip()).resolve() for f in files]
    return result


def stamp_name(command, files, common):
    digest = hashlib.sha256(common)
    digest.update(command["command"].encode())
    for file in sorted({pathlib.Path(command["file"]), *files}):
        if file.is_relative_to(ROOT):
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


class Unit:
    """Files that are checked at once."""

    LARGEST = 8

    def __init__(self, key):
        self.key = key
        self.commands = []
        self._names = set()

    def take(self, command, key, names):
        """Whether the command, of that key and with those names, has been taken: it may be one too
        many."""
        if key != self.key or len(self.commands) == self.LARGEST or names & self._names:
            return False
        self.commands.append(command)
        self._names |= names
        return True


# What a file defines in its outermost scopes, for itself: a constant, a type, a function.
NAMES = re.compile(
    r"^(?:class|struct|enum class) (\w+)|^using (\w+) =|(?:^| )(k[A-Z]\w*)\b.* =|^\w.* \**(\w+)\(", re.M
)


def names_in(file):
    found = NAMES.finditer(pathlib.Path(file).read_text())
    return {name for match in found for name in match.groups() if name}


def key_of(command):
    """What commands have in common whose files may be read as one."""
    words = shlex.split(command["command"])
    words[words.index("-o") + 1] = ""
    words[words.index(command["file"])] = ""
    return command["directory"], config_of(command["file"]), *words


def config_of(file):
    """The settings of clang-tidy that hold for the file."""
    folders = pathlib.Path(file).parents
    return next(folder / ".clang-tidy" for folder in folders if (folder / ".clang-tidy").exists())


def units_of(commands):
    units = []
    for command in commands:
        key, names = key_of(command), names_in(command["file"])
        if not any(unit.take(command, key, names) for unit in units):
            units.append(Unit(key))
            units[-1].take(command, key, names)
    return units


def lint(folder, unit):
    """Maps each file of the unit to what clang-tidy has against it, if anything."""
    files = [command["file"] for command in unit.commands]
    if len(files) > 1 and together(folder / f"unit-{id(unit)}", unit).returncode == 0:
        return dict.fromkeys(files, "")
    return {file: alone(folder, file) for file in files}


def together(folder, unit):
    first = unit.commands[0]
    # By that name the static analyzer knows that what it includes is no header.
    source = folder / f"UnifiedSource{pathlib.Path(first['file']).suffix}"
    folder.mkdir()
    shutil.copy(config_of(first["file"]), folder)  # its parent is that of the repository
    source.write_text("".join(f'#include "{command["file"]}"\n' for command in unit.commands))
    words = shlex.split(first["command"])
    words[words.index(first["file"])] = str(source)
    command = {**first, "file": str(source), "command": shlex.join(words)}
    (folder / "compile_commands.json").write_text(json.dumps([command]))
    options = [
        "--checks=-bugprone-suspicious-include",
        f"--header-filter={re.escape(str(ROOT))}/(server|client|plugins|tests)/.*",
    ]
    return subprocess.run(
        [CLANG_TIDY, "-p", folder, "--quiet", *options, source], capture_output=True, text=True
    )


def alone(folder, file):
    result = subprocess.run(
        [CLANG_TIDY, "-p", folder, "--quiet", file], capture_output=True, text=True
    )
    return result.returncode and f"{result.stdout}{result.stderr}"


def main():
    build, jobs = pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2])
    stamps = build / "lint"
    stamps.mkdir(exist_ok=True)
    version = subprocess.run([CLANG_TIDY, "--version"], check=True, capture_output=True).stdout
    settings = sorted(ROOT.glob(".clang-tidy")) + sorted(ROOT.glob("*/.clang-tidy"))
    # What is generated from proto/ is among the precompiled headers, which ninja knows as one.
    settings += sorted(ROOT.glob("proto/**/*.proto"))
    common = version + b"".join(file.read_bytes() for file in settings)
    objects = dependencies(build)
    commands = list(own_commands(build))
    folder = build / "lint-commands"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "compile_commands.json").write_text(json.dumps(commands))

    to_do = []
    stamp_of = {}
    current = set()
    for command in commands:
        words = shlex.split(command["command"])
        name = stamp_name(command, objects[words[words.index("-o") + 1]], common)
        current.add(name)
        if not (stamps / name).exists():
            to_do.append(command)
            stamp_of[command["file"]] = stamps / name
    for stamp in stamps.iterdir():
        if stamp.name not in current:
            stamp.unlink()

    failed = 0
    units = units_of(to_do)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for results in pool.map(lambda unit: lint(folder, unit), units):
            for file, findings in results.items():
                if findings:
                    failed += 1
                    print(f"{file}:\n{findings}", flush=True)
                else:
                    stamp_of[file].touch()
    print(f"{len(to_do)} of {len(current)} files checked, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
