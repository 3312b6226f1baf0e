"""Checkpoints that one torch writes, through ckptd and by torch.save, and another one reads.

usage: files.py write|read FOLDER

What the other torch makes of a file of torch.save it must make of ours: the same tensors, bit for
bit, or an error. The reader needs torch and nothing else.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import pathlib
import sys

import torch

REPO = pathlib.Path(__file__).resolve().parents[3]


def summary(state):
    """Equal for states that are equal bit for bit, whichever torch they are of."""
    if isinstance(state, torch.Tensor):
        dense = state.detach().to_dense() if state.layout is not torch.strided else state.detach()
        dense = dense.resolve_conj().contiguous()
        data = ctypes.string_at(dense.data_ptr(), dense.numel() * dense.element_size())
        return [str(state.dtype), list(state.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(state, dict):
        return [type(state).__name__, [[str(key), summary(part)] for key, part in state.items()]]
    if isinstance(state, (list, tuple)):
        return [type(state).__name__, [summary(part) for part in state]]
    return repr(state)


def write(folder: pathlib.Path) -> None:
    """Saves each state both ways."""
    sys.path.insert(0, str(REPO / "tests" / "python"))
    from harness import Daemon
    from objects import CASES, dtypes

    states = {f"dtype {name}": {"t": tensor} for name, tensor in dtypes().items()}
    # Arrays and classes are numpy's and the program's to read.
    states.update((name, made()) for name, (made, plain) in CASES.items() if plain and name != "dtypes")
    daemon = Daemon(folder)
    try:
        client = daemon.client()
        for name, state in states.items():
            client.save(state, folder / f"{name}.ours")
            torch.save(state, folder / f"{name}.theirs")
            (folder / f"{name}.json").write_text(json.dumps(summary(state)))
        client.flush()
        client.close()
    finally:
        daemon.clean_up()
    print(f"{len(states)} states written with torch {torch.__version__}")


def read(folder: pathlib.Path) -> int:
    """Loads each file both ways, and compares; returns the exit code."""
    equal, unreadable, different = 0, [], []
    for path in sorted(folder.glob("*.json")):
        for weights_only in (True, False):
            found = {}
            for whose in ("ours", "theirs"):
                try:
                    state = torch.load(path.with_suffix(f".{whose}"), weights_only=weights_only)
                    found[whose] = summary(state)
                except Exception as error:  # noqa: BLE001 - whatever this torch says of it
                    found[whose] = f"{type(error).__name__}: {error}".splitlines()[0]
            one = f"{path.stem} (weights_only={weights_only})"
            # What torch says has the name of the file in it, if anything.
            if isinstance(found["ours"], str) and isinstance(found["theirs"], str):
                unreadable.append(f"{one}: {found['theirs'][:120]}")
            elif found["ours"] != found["theirs"] or found["ours"] != json.loads(path.read_text()):
                different.append(f"{one}: {str(found)[:400]}")
            else:
                equal += 1
    for line in unreadable:
        print(f"not readable, ours or torch.save's: {line}")
    for line in different:
        print(f"DIFFERENT: {line}")
    print(
        f"torch {torch.__version__}: {equal} loads are equal, {len(unreadable)} neither way, "
        f"{len(different)} are different"
    )
    return 1 if different or not equal else 0


if __name__ == "__main__":
    command, target = sys.argv[1:]
    if command == "write":
        write(pathlib.Path(target))
    else:
        sys.exit(read(pathlib.Path(target)))
