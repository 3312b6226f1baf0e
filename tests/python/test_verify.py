"""Damaged checkpoints: found, named, and passed over; whole ones of every kind left alone."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import pickle
import struct
import zipfile
import zlib

import ckptd
import pytest
import torch
from ckptd import rpc
from ckptd.verify import check
from ckptd.v1 import checkpoint_pb2 as pb
from conftest import REPO, WAIT_SECONDS
from objects import CASES, Custom, same
from zips import MAX32, end_records, forge, pickle_and, record

STATE = {"w": torch.arange(3.0), "text": "é", "none": torch.zeros(0), "n": [1, 2]}


def saved(state=None) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(STATE if state is None else state, file)
    return file.getvalue()


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


def damage(path, record_name: str = "data/0") -> int:
    """Flips a byte of a record in a file; returns where the record begins."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.filelist if i.filename.endswith(record_name))
    with open(path, "r+b") as file:
        file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        at = info.header_offset + 30 + name_bytes + extra_bytes
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    return info.header_offset


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


# ---- load


@pytest.fixture(params=["shm", "grpc"])
def loader(request, daemon):
    client = daemon.client(transport=request.param)
    yield client
    client.close()


def test_load_refuses_a_corrupt_file(loader, tmp_path):
    path = tmp_path / "a.pt"
    loader.save(STATE, path).result()
    assert same(STATE, loader.load(path))
    offset = damage(path)
    with pytest.raises(ckptd.CorruptCheckpointError) as caught:
        loader.load(path)
    error = caught.value
    assert (error.record, error.offset, error.path) == ("archive/data/0", offset, str(path))
    assert not same(STATE, loader.load(path, verify=False)), "torch.load itself sees nothing"


def test_load_of_a_truncated_file(loader, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(saved()[:-10])
    with pytest.raises(ckptd.CorruptCheckpointError, match="lacks its end"):
        loader.load(path)


def test_load_falls_back(loader, tmp_path, caplog):
    paths = [tmp_path / f"{i}.pt" for i in range(4)]
    for i, path in enumerate(paths[1:]):
        torch.save({"i": i + 1}, path)
    damage(paths[1], "data.pkl")
    with caplog.at_level(logging.WARNING, "ckptd"):
        assert loader.load(paths[0], fallback=paths[1:]) == {"i": 2}
    missing, damaged = [r.getMessage() for r in caplog.records if "Falling back" in r.getMessage()]
    assert f"{paths[0]}" in missing and missing.endswith(f"Falling back to {paths[1]}.")
    assert "CRC-32" in damaged and damaged.endswith(f"Falling back to {paths[2]}.")
    assert loader.load(paths[2], fallback=paths[3]) == {"i": 2}
    assert loader.load(paths[1], fallback=str(paths[3])) == {"i": 3}


def test_load_tells_of_all_that_failed(client, tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(STATE, a)
    offset = damage(a)
    with pytest.raises(ckptd.CorruptCheckpointError) as caught:
        client.load(a, fallback=[b])
    assert str(caught.value).count("\nAlso: ") == 1
    assert str(b) in str(caught.value).split("\nAlso: ")[1]
    assert (caught.value.record, caught.value.offset) == ("a/data/0", offset)
    with pytest.raises(FileNotFoundError) as missing:
        client.load(b, fallback=[a])
    assert "\nAlso: " in str(missing.value) and "CRC-32" in str(missing.value)


def test_other_errors_do_not_fall_back(client, tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(Custom(), a)
    torch.save(STATE, b)
    with pytest.raises(pickle.UnpicklingError):
        client.load(a, weights_only=True, fallback=[b])


def test_load_without_a_daemon_verifies(tmp_path):
    path, older = tmp_path / "a.pt", tmp_path / "b.pt"
    client = ckptd.Client(f"unix:{tmp_path}/none.sock", on_unavailable="fallback")
    for one in (path, older):
        torch.save(STATE, one)
    damage(path)
    with pytest.warns(RuntimeWarning), pytest.raises(ckptd.CorruptCheckpointError):
        client.load(path)
    assert same(STATE, client.load(path, fallback=[tmp_path / "none", older]))


def test_module_functions(daemon, tmp_path, run_python):
    path, older = tmp_path / "a.pt", tmp_path / "b.pt"
    for one in (older, path):
        torch.save({"x": 1}, one)
    damage(path, "data.pkl")
    os.utime(older, (1, 1))
    run_python(
        """
        import sys, ckptd
        path, older, folder = sys.argv[1:]
        assert ckptd.load(path, fallback=[older]) == {"x": 1}
        assert ckptd.latest(folder) == older
        assert ckptd.verify(older) is None
        try:
            ckptd.load(path)
        except ckptd.CorruptCheckpointError as error:
            assert error.record.endswith("data.pkl")
        else:
            raise AssertionError
        """,
        path,
        older,
        tmp_path,
    )


def test_lightning_plugin_verifies(daemon, tmp_path):
    lightning = pytest.importorskip("ckptd.lightning")
    path = tmp_path / "a.ckpt"
    io_plugin = lightning.SidecarCheckpointIO(client=daemon.client())
    io_plugin.save_checkpoint(STATE, path)
    io_plugin.teardown()
    damage(path)
    with pytest.raises(ckptd.CorruptCheckpointError):
        io_plugin.load_checkpoint(path)
    unchecked = lightning.SidecarCheckpointIO(client=daemon.client(), verify=False)
    assert not same(STATE, unchecked.load_checkpoint(path))
    unchecked.teardown()


# ---- latest


@contextlib.contextmanager
def held_paths(daemon):
    """Keeps the saves to paths from beginning, each until it is let go."""
    with rpc.open_channel(daemon.address) as channel:
        stub = rpc.Stub(channel)
        events = stub.OpenSession(pb.OpenSessionRequest(client="holder"))
        session_id = next(events).session_id

        def begin_load(path):
            request = pb.BeginLoadRequest(session_id=session_id, path=str(path))
            load_id = stub.BeginLoad(request, timeout=WAIT_SECONDS).load_id
            end = pb.EndLoadRequest(load_id=load_id)
            return lambda: stub.EndLoad(end, timeout=WAIT_SECONDS)

        yield begin_load
        events.cancel()


def test_latest_passes_over_what_is_corrupt(client, tmp_path, caplog):
    for i in range(4):
        torch.save({"i": i}, tmp_path / f"{i}.pt")
        os.utime(tmp_path / f"{i}.pt", (i, i))
    assert client.latest(tmp_path) == str(tmp_path / "3.pt")
    damage(tmp_path / "3.pt", "data.pkl")
    (tmp_path / "2.pt").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "ckptd"):
        assert client.latest(str(tmp_path)) == str(tmp_path / "1.pt")
    warned = [r.getMessage() for r in caplog.records if "Passed over" in r.getMessage()]
    assert len(warned) == 2
    assert "3.pt: is corrupt" in warned[0] and "2.pt: is corrupt" in warned[1]


def test_latest_takes_checkpoints_only(client, tmp_path):
    good = tmp_path / "good.pt"
    torch.save({"x": 1}, good)
    os.utime(good, (1, 1))
    torch.save(STATE, tmp_path / ".hidden.pt")
    torch.save(STATE, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "events.log").write_text("text")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a/b", "c")
    (tmp_path / "folder.pt").mkdir()
    torch.save(STATE, tmp_path / "folder.pt" / "inner.pt")
    (tmp_path / "link.pt").symlink_to(good)
    assert client.latest(tmp_path) == str(good)


def test_latest_of_equal_times_goes_by_name(client, tmp_path):
    for name in ("a.pt", "c.pt", "b.pt"):
        torch.save({}, tmp_path / name)
        os.utime(tmp_path / name, (5, 5))
    assert client.latest(tmp_path) == str(tmp_path / "c.pt")


def test_latest_finds_none(client, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: there is no torch checkpoint"):
        client.latest(tmp_path)
    (tmp_path / "a.pt").write_bytes(saved()[:-1])
    with pytest.raises(FileNotFoundError, match="\nAlso: .*a.pt: is corrupt"):
        client.latest(tmp_path)
    with pytest.raises(FileNotFoundError):
        client.latest(tmp_path / "none")


@pytest.mark.parametrize("through_link", [False, True])
def test_latest_waits_for_what_is_pending_in_the_folder(client, daemon, tmp_path, through_link):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    if through_link:
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
    other = daemon.client(job="another-job")
    other.save({"x": 1}, folder / "a.pt").result()
    other.save({"x": 1}, elsewhere / "a.pt").result()
    with held_paths(daemon) as begin_load:
        release = begin_load(folder / "a.pt")
        begin_load(elsewhere / "a.pt")
        other.save({"x": 2}, folder / "a.pt")
        other.save({"x": 2}, elsewhere / "a.pt")
        impatient = daemon.client(timeout=0.2)
        with pytest.raises(ckptd.CheckpointTimeoutError, match=str(folder.resolve())):
            impatient.latest(folder)
        release()
        assert client.latest(folder) == str(folder / "a.pt")
        assert torch.load(folder / "a.pt") == {"x": 2}
    other.flush()
    other.close()


def test_latest_without_a_daemon(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    client = ckptd.Client(f"unix:{tmp_path}/none.sock", on_unavailable="start")
    assert client.latest(tmp_path) == str(tmp_path / "a.pt")
    assert not (tmp_path / "none.sock").exists(), "it starts none"
