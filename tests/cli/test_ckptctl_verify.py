"""ckptctl verify: its output, and that it judges every file as the Python client does."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ckptd
import torch
from ckptd.verify import check

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "python"))

from harness import CKPTCTL, WAIT_SECONDS  # noqa: E402 - found there
from zips import forge, pickle_and, record  # noqa: E402

GOLDEN = REPO / "tests" / "server" / "testdata" / "small.pt"


def verify(*arguments, cwd=None) -> subprocess.CompletedProcess:
    """Runs it where no daemon can be."""
    return subprocess.run(
        [CKPTCTL, "verify", *map(str, arguments)],
        env={**os.environ, "CKPTD_ADDRESS": "unix:/nowhere/ckptd.sock"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=5 * WAIT_SECONDS,
    )


def test_whole_files(tmp_path):
    torch.save({"w": torch.arange(1_000_000)}, tmp_path / "a.pt")
    result = verify(GOLDEN, tmp_path / "a.pt")
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first == f"{GOLDEN}  ok  9 records  {GOLDEN.stat().st_size} bytes"
    assert re.fullmatch(rf"{tmp_path}/a.pt  ok  \d+ records  \d+ bytes", second)


def test_damaged_and_missing_files(tmp_path):
    content = bytearray(GOLDEN.read_bytes())
    name = content.index(b"archive/data/0")
    content[(name + len("archive/data/0") + 63) // 64 * 64] ^= 1
    damaged, missing = tmp_path / "a\x1b.pt", tmp_path / "none.pt"
    damaged.write_bytes(content)
    result = verify(damaged, GOLDEN, missing, tmp_path)
    assert result.returncode == 1
    assert result.stderr == "ckptctl: 3 of 4 files could not be verified\n"
    lines = result.stdout.splitlines()
    where = f"is corrupt at byte {name - 30}, record 'archive/data/0': CRC-32 of its "
    assert lines[0].startswith(f"{tmp_path}/a\\x1b.pt: {where}")
    assert "ok" in lines[1]
    assert lines[2] == f"Checkpoint file not found: {missing}"
    assert lines[3] == f"{tmp_path}: is not a file"


def test_json(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"PK\3\4")
    (tmp_path / "b.pt").write_text("no zip")
    result = verify("--output", "json", GOLDEN, tmp_path / "a.pt", tmp_path / "b.pt", "/none")
    assert result.returncode == 1
    whole, damaged, other, missing = json.loads(result.stdout)["files"]
    size = str(GOLDEN.stat().st_size)
    assert whole == {"path": str(GOLDEN), "ok": True, "records": "9", "bytes": size}
    assert (damaged["ok"], damaged["reason"]) == (False, "CORRUPT_CHECKPOINT")
    assert damaged["offset"] == "4"
    assert "record" not in damaged and "lacks its end" in damaged["message"]
    assert other["reason"] == "NOT_VERIFIABLE"
    assert (missing["path"], missing["reason"]) == ("/none", "NOT_FOUND")


def test_needs_a_path():
    result = verify()
    assert (result.returncode, result.stdout) == (2, "")


def judgement(content: bytes):
    """What Python says: whole, what cannot be verified, or where it is corrupt."""
    try:
        return "ok" if check(io.BytesIO(content), "x") else "NOT_VERIFIABLE"
    except ckptd.CorruptCheckpointError as error:
        return error.offset, error.record is not None


def test_agrees_with_python_on_every_byte(tmp_path):
    content = GOLDEN.read_bytes()
    deflated = record("archive/data/0", b"\x03\x00", method=8, size=0, crc=0)
    variants = [forge(pickle_and(deflated)), b"", bytes(8), b"PK", b"P", b"text"]
    for at in range(len(content)):
        for mask in (1 << at % 8, 0xFF):
            flipped = bytearray(content)
            flipped[at] ^= mask
            variants.append(bytes(flipped))
    variants += [content[:length] for length in range(0, len(content), 3)]
    names = [f"{i}" for i in range(len(variants))]
    for name, variant in zip(names, variants):
        (tmp_path / name).write_bytes(variant)
    result = verify("-o", "json", *names, cwd=tmp_path)
    files = json.loads(result.stdout)["files"]
    assert len(files) == len(variants)
    for file, variant in zip(files, variants):
        if file["ok"]:
            found = "ok"
        elif file["reason"] == "CORRUPT_CHECKPOINT":
            found = int(file["offset"]), "record" in file
        else:
            found = file["reason"]
        assert found == judgement(variant), file
