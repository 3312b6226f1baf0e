"""Runs clang-tidy over our own C++ files, only over those that changed since they last passed.

usage: lint.py BUILD_DIR JOBS

Needs a finished build: ninja knows then which headers each object was made of. A file that passed
leaves a stamp under BUILD_DIR/lint, named by a hash of all that its result hangs on.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import shlex
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


def lint(folder, file):
    return subprocess.run(
        [CLANG_TIDY, "-p", folder, "--quiet", file], capture_output=True, text=True
    )


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
    folder.mkdir(exist_ok=True)
    (folder / "compile_commands.json").write_text(json.dumps(commands))

    to_do = {}
    current = set()
    for command in commands:
        words = shlex.split(command["command"])
        name = stamp_name(command, objects[words[words.index("-o") + 1]], common)
        current.add(name)
        if not (stamps / name).exists():
            to_do[command["file"]] = stamps / name
    for stamp in stamps.iterdir():
        if stamp.name not in current:
            stamp.unlink()

    failed = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for (file, stamp), result in zip(
            to_do.items(), pool.map(lambda file: lint(folder, file), to_do)
        ):
            if result.returncode == 0:
                stamp.touch()
            else:
                failed += 1
                print(f"{file}:\n{result.stdout}{result.stderr}", flush=True)
    print(f"{len(to_do)} of {len(current)} files checked, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
