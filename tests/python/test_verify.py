"""Damaged checkpoint files are found and named; whole ones of every kind pass."""

from __future__ import annotations

import errno
import io
import os
import pickle
import zipfile
import zlib

import ckptd
import pytest
import torch
from ckptd.verify import check
from harness import REPO
from objects import CASES, same
from zips import MAX32, STATE, damage, end_records, forge, pickle_and, record, saved

def corrupt(content: bytes) -> ckptd.CorruptCheckpointError:
    """The error for such a file; checks what all of them have in common."""
    with pytest.raises(ckptd.CorruptCheckpointError) as caught:
        check(io.BytesIO(content), "/x/a.pt")
    error = caught.value
    assert (error.reason, error.path, error.save) == ("CORRUPT_CHECKPOINT", "/x/a.pt", None)
    assert str(error).startswith(f"/x/a.pt: is corrupt at byte {error.offset}")
    assert str(error).endswith("ckptd.latest finds the newest one that is whole.")
    assert 0 <= error.offset <= len(content)
    return error


# ---- Every kind of damage


def test_every_flipped_bit_is_found_or_changes_nothing():
    content = saved()
    found = 0
    for at in range(len(content)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            flipped = bytearray(content)
            flipped[at] ^= mask
            try:
                assert check(io.BytesIO(flipped), "x") is not None
            except ckptd.CorruptCheckpointError:
                found += 1
                continue
            try:
                loaded = torch.load(io.BytesIO(flipped))
            except Exception as error:
                pytest.fail(f"byte {at} ^ {mask} verifies, but torch.load says {error}")
            assert same(STATE, loaded), f"byte {at} ^ {mask}"
    payload = sum(i.file_size for i in zipfile.ZipFile(io.BytesIO(content)).filelist)
    assert found > 9 * payload


def test_every_truncation_is_found():
    content = saved()
    for length in range(len(content)):
        error = corrupt(content[:length])
        assert error.record is None or error.offset < length
    assert "the file is empty" in str(corrupt(b""))
    assert "lacks its end" in str(corrupt(content[:100]))


@pytest.mark.parametrize("zeros", [1, 4, 100_000])
def test_file_that_never_reached_the_storage(zeros):
    assert "begins with zeros" in str(corrupt(bytes(zeros)))


def test_hole_in_the_middle():
    content = bytearray(saved({"w": torch.full((5000,), 2.0)}))
    content[8192:12288] = bytes(4096)
    error = corrupt(content)
    assert error.record == "archive/data/0"
    assert content[error.offset : error.offset + 4] == b"PK\3\4"


def test_trailing_bytes():
    assert "5 bytes follow the end record" in str(corrupt(saved() + b"extra"))


def test_wrong_crc_names_record_and_offset():
    content = forge(pickle_and(record("archive/data/0", b"12345678", crc=7)))
    error = corrupt(content)
    assert error.record == "archive/data/0"
    assert error.offset == content.index(b"PK\3\4", 1)
    assert f"CRC-32 of its 8 bytes is {zlib.crc32(b'12345678'):08x}" in str(error)
    assert "the directory says 00000007" in str(error)


DATA = b"0123456789abcdef"
LIES = {
    "count too large": ({}, {"count": 3, "count64": 3}),
    "count too small": ({}, {"count": 1, "count64": 1}),
    "count beyond all bounds": ({}, {"count": 0xFFFF, "count64": 1 << 60}),
    "counts differ": ({}, {"count": 1}),
    "size beyond all bounds": ({}, {"size": MAX32, "size64": (1 << 64) - 1}),
    "start beyond all bounds": ({}, {"start": MAX32, "start64": (1 << 64) - 8}),
    "start elsewhere": ({}, {"start": 8, "start64": 8}),
    "zip64 end elsewhere": ({}, {"end64": 1 << 62}),
    "zip64 end nowhere": ({}, {"zip64": False, "start": MAX32}),
    "record beyond the file": ({"offset": 1 << 20}, {}),
    "record without end": ({"zip64": True, "size": 1 << 63, "stored": 1 << 63}, {}),
    "record at no offset": ({"zip64": True, "offset": (1 << 64) - 1}, {}),
    "record into the directory": ({"size": 300, "stored": 300}, {}),
    "no room for a header": (
        {"data": b"PK\3\4".rjust(16), "offset": 122, "size": 0, "stored": 0, "crc": 0},
        {},
    ),
    "zip64 field too short": ({"zip64": True, "zip64_bytes": 20}, {}),
    "no zip64 field": ({"size": MAX32, "stored": MAX32}, {}),
    "entry of another record": ({"offset": 0}, {}),
    "header of another name": ({"local_name": "archive/data/1"}, {}),
    "entry of another name": ({"entry_name": "archive/data/1"}, {}),
    "header with another size": ({"local_size": 15, "local_stored": 15}, {}),
    "header with another CRC": ({"local_crc": 1}, {}),
    "header with other flags": ({"local_flags": 0}, {}),
    "header with another method": ({"local_method": 8}, {}),
    "padding into the directory": ({"extra_bytes": 60_000}, {}),
    "padding that moves the bytes": ({"extra_bytes": 6}, {}),
    "encrypted": ({"flags": 0x0809}, {}),
    "unknown method": ({"method": 12}, {}),
    "deflated, it says": ({"method": 8}, {}),
    "folder with bytes": ({"attributes": 0x10}, {}),
    "folder by its name": ({"name": "archive/data/"}, {}),
    "on another disk": ({"disk": 1}, {}),
    "stored size differs": ({"size": 15}, {}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_of_directory_and_headers(lie):
    of_record, of_file = LIES[lie]
    lying = record(**{"name": "archive/data/0", "data": DATA, **of_record})
    corrupt(forge(pickle_and(lying), **of_file))


def test_without_lies_the_same_files_are_whole():
    for of_record in ({}, {"zip64": True}):
        records = pickle_and(record("archive/data/0", DATA, **of_record))
        for of_file in ({}, {"zip64": False}):
            assert check(io.BytesIO(forge(records, **of_file)), "x")[:1] == (2,)


def test_overlapping_records():
    inner = forge([record("archive/data/1", b"in")])
    inner = inner[: inner.index(b"PK\1\2")]
    outer = record("archive/data/0", b"...." + inner)
    content = forge(pickle_and(outer))
    header = content.index(b"PK\3\4", content.index(b"PK\3\4", 1) + 1)
    both = pickle_and(outer, record("archive/data/1", b"", offset=header, size=2, stored=2))
    error = corrupt(forge(both))
    assert error.record == "archive/data/0"
    assert "reach into what follows" in str(error)


def test_two_entries_of_one_name():
    twice = record("archive/data/0", DATA)
    assert "two entries of this name" in str(corrupt(forge(pickle_and(twice, twice))))


def test_embedded_checkpoint_at_a_truncated_end():
    inner = saved()
    content = saved({"w": torch.frombuffer(bytearray(inner), dtype=torch.uint8)})
    corrupt(content[: content.index(inner) + len(inner)])


def test_damaged_beginning_of_a_zip_file():
    content = b"QK" + saved()[2:]
    error = corrupt(content)
    assert (error.offset, error.record) == (0, None)
    assert "b'QK\\x03\\x04'" in str(error)


def test_more_than_4_gib(tmp_path):
    """Offsets and sizes of 64 bits, in a sparse file."""
    far = 5 << 30
    path = tmp_path / "a.pt"

    def write(**lies):
        first = forge(pickle_and())
        first = first[: first.index(b"PK\1\2")]
        both = pickle_and(record("archive/data/0", DATA, zip64=True, offset=far, **lies))
        content = forge(both)
        second = content[len(first) : content.index(b"PK\1\2")]
        directory = content[content.index(b"PK\1\2") : content.index(b"PK\6\6")]
        with open(path, "wb") as file:
            file.write(first)
            file.seek(far)
            file.write(second + directory)
            file.write(end_records((2, len(directory), far + len(second))))

    write()
    assert check(path, path)[:1] == (2,)
    write(crc=1)
    with pytest.raises(ckptd.CorruptCheckpointError) as caught:
        ckptd.verify(path)
    assert (caught.value.record, caught.value.offset) == ("archive/data/0", far)
    write(size=far, stored=far)
    with pytest.raises(ckptd.CorruptCheckpointError, match="reach into what follows"):
        ckptd.verify(path)


def test_large_records_are_read_in_pieces_by_several_threads(tmp_path):
    path = tmp_path / "a.pt"
    torch.save([torch.arange(1_000_000 + i) for i in range(5)] + [torch.arange(9)] * 2, path)
    assert check(path, path).records == len(zipfile.ZipFile(path).filelist)
    offsets = [damage(path, name) for name in ("data/3", "data/1", "data/4")]
    with pytest.raises(ckptd.CorruptCheckpointError) as caught:
        ckptd.verify(path)
    assert caught.value.offset == min(offsets), "the first in the file is told"


def test_unreadable_sector_is_damage(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    path.write_bytes(saved())
    pread = os.pread

    def fail(fd, size, offset):
        if offset + size > 1000:
            raise OSError(why, os.strerror(why))
        return pread(fd, size, offset)

    why = errno.EIO
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(ckptd.CorruptCheckpointError, match="Input/output error"):
        ckptd.verify(path)
    why = errno.ESTALE
    with pytest.raises(OSError, match="Stale"):
        ckptd.verify(path)


def test_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    path.write_bytes(saved())
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: b"")
    with pytest.raises(ckptd.CorruptCheckpointError, match="was cut while it was read"):
        ckptd.verify(path)


def test_error_survives_pickling():
    error = corrupt(saved()[:1000])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ckptd.CorruptCheckpointError
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert isinstance(error, ckptd.CheckpointError)


# ---- What is whole


@pytest.mark.parametrize("name", CASES)
def test_what_torch_save_and_ckptd_write_is_whole(name, client, tmp_path):
    state = CASES[name][0]()
    torch.save(state, tmp_path / "torch.pt")
    client.save(state, tmp_path / "ckptd.pt").result()
    for path in (tmp_path / "torch.pt", tmp_path / "ckptd.pt"):
        ckptd.verify(path)
        checked = check(path, path)
        assert checked.bytes == path.stat().st_size and checked.has_pickle


def rewritten(content: bytes, method: int, keep=lambda name: True) -> bytes:
    """The same records as another zip writer has them."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", method) as new:
        for info in old.filelist:
            if keep(info.filename):
                new.writestr(info.filename, old.read(info))
    return out.getvalue()


class Unseekable(io.BytesIO):
    """Makes zipfile write data descriptors."""

    def seekable(self):
        return False

    def tell(self):
        raise OSError

    def seek(self, *_):
        raise OSError


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_other_flavours_of_torch_files_are_whole():
    state = {"w": torch.arange(100_000), "text": "x" * 1000}
    content = saved(state)
    old = {"data.pkl", "version"}  # torch 1.6: no byteorder, no .data, no .format_version
    stream = Unseekable()
    with zipfile.ZipFile(io.BytesIO(content)) as zip_in, zipfile.ZipFile(stream, "w") as zip_out:
        for info in zip_in.filelist:
            zip_out.writestr(info.filename, zip_in.read(info))
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), script)
    flavours = {
        "older": rewritten(
            content, zipfile.ZIP_STORED, lambda n: n.split("/", 1)[1] in old or "/data/" in n
        ),
        "stored": rewritten(content, zipfile.ZIP_STORED),
        "deflated": rewritten(content, zipfile.ZIP_DEFLATED),
        "descriptors": stream.getvalue(),
    }
    for name, flavour in flavours.items():
        assert check(io.BytesIO(flavour), name).has_pickle, name
        assert same(state, torch.load(io.BytesIO(flavour))), name
    assert check(io.BytesIO(script.getvalue()), "script") is not None


def test_damage_in_deflated_records():
    content = rewritten(saved({"w": torch.arange(1000)}), zipfile.ZIP_DEFLATED)
    info = next(
        i for i in zipfile.ZipFile(io.BytesIO(content)).filelist if i.filename.endswith("data/0")
    )
    start = info.header_offset + 30 + len(info.filename)
    for at in range(start, start + info.compress_size, 7):
        flipped = bytearray(content)
        flipped[at] ^= 1
        assert corrupt(bytes(flipped)).record == "archive/data/0"


def test_golden_file():
    ckptd.verify(REPO / "tests" / "server" / "testdata" / "small.pt")


# ---- What cannot be checked


def not_verifiable(path) -> None:
    with pytest.raises(ckptd.CheckpointError) as caught:
        ckptd.verify(path)
    assert caught.value.reason == "NOT_VERIFIABLE"
    assert not isinstance(caught.value, ckptd.CorruptCheckpointError)


def test_file_that_is_no_zip_is_loaded_as_it_is(client, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    not_verifiable(path)
    assert same(STATE, client.load(path, weights_only=False))


def test_file_without_checksums_is_loaded_as_it_is(client, tmp_path):
    path = tmp_path / "a.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    not_verifiable(path)
    assert same(STATE, client.load(path))
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ckptd.CorruptCheckpointError):
        ckptd.verify(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        ckptd.verify(tmp_path)
    with pytest.raises(FileNotFoundError):
        ckptd.verify(tmp_path / "none.pt")
