"""The library that copies is used where it is installed, and nothing depends on it."""

from __future__ import annotations

import ctypes
import os
import random

import pytest
import torch
from ckptd import installed
from harness import BUILD
from objects import same

LARGE = 5 << 20  # bytes; more than what is copied by memmove


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """Each test looks for the library anew, beside the daemon under test."""
    monkeypatch.setenv("CKPTD_BIN", str(BUILD / "bin" / "ckptd"))
    find = installed.stream_copy
    find.cache_clear()
    yield
    find.cache_clear()


def test_it_is_found_beside_the_daemon(monkeypatch):
    copy = installed.stream_copy()
    assert copy is not ctypes.memmove
    monkeypatch.setenv("CKPTD_BIN", "/nowhere/bin/ckptd")
    assert list(installed._copy_libraries()) == [
        "/nowhere/lib/libckptd_copy.so",
        "libckptd_copy.so",
    ]


def test_it_copies_what_it_is_given():
    source = random.Random(7).randbytes(10_000)
    target = ctypes.create_string_buffer(b"x" * 10_000, 10_000)
    kept = (ctypes.c_char * 10_000).from_buffer_copy(source)
    start = ctypes.addressof(kept)
    installed.stream_copy()(ctypes.addressof(target) + 3, start + 1, 9_000)
    assert target.raw == b"xxx" + source[1:9_001] + b"x" * 997


@pytest.mark.parametrize("found", ["none", "damaged", "another"])
def test_saves_do_without_it(client, tmp_path, monkeypatch, found):
    library = tmp_path / "libckptd_copy.so"
    if found == "damaged":
        library.write_bytes(b"no library")
    named = {"none": str(library), "damaged": str(library), "another": "libc.so.6"}[found]
    monkeypatch.setattr(installed, "_copy_libraries", lambda: [named])
    assert installed.stream_copy() is ctypes.memmove
    state = {"large": torch.rand(LARGE // 4 + 13), "more": torch.rand(3, LARGE // 8)}
    client.save(state, tmp_path / "a.pt").result()
    assert same(state, torch.load(tmp_path / "a.pt"))


def test_saves_use_it(client, tmp_path, monkeypatch):
    copied = []
    real = installed.stream_copy()

    def counted(to, source, size):
        copied.append(size)
        real(to, source, size)

    monkeypatch.setattr(installed, "stream_copy", lambda: counted)
    state = {"large": torch.rand(LARGE // 4 + 13), "small": torch.rand(16 << 10)}
    client.save(state, tmp_path / "a.pt").result()
    assert same(state, torch.load(tmp_path / "a.pt"))
    assert sum(copied) == sum(tensor.nbytes for tensor in state.values())
    os.unlink(tmp_path / "a.pt")
    client.save({"small": state["small"]}, tmp_path / "a.pt").result()
    assert len(copied) == 3, "a small state is copied by memmove"
