"""Torch files, damaged; or made byte by byte, with whatever lie a test asks for."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Dict, List, Tuple

import torch

MAX32 = 0xFFFFFFFF
STATE = {"w": torch.arange(3.0), "text": "é", "none": torch.zeros(0), "n": [1, 2]}


def saved(state=None) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(STATE if state is None else state, file)
    return file.getvalue()


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


def record(name: str, data: bytes, **lies) -> Dict:
    """One record. `lies` replace what header and directory would truly say.

    Of the entry: crc, size, stored, offset, flags, method, disk, attributes, entry_name. Of the
    local header: local_name, local_crc, local_size, local_stored, local_flags, local_method,
    extra_bytes. zip64=True moves the entry's numbers to a zip64 field, cut to `zip64_bytes`.
    """
    return {"name": name, "data": data, **lies}


def pickle_and(*others: Dict) -> List[Dict]:
    """The fewest records that make a file."""
    return [record("archive/data.pkl", b"pickle"), *others]


def forge(records: List[Dict], **lies) -> bytes:
    """The file. `lies`: count, size, start, count64, size64, start64; zip64=False leaves it out."""
    out, entries = b"", b""
    for one in records:
        offset = one.get("offset", len(out))
        out += _header(one) + one["data"]
        entries += _entry(one, offset)
    return out + entries + end_records((len(records), len(entries), len(out)), **lies)


def end_records(truth: Tuple[int, int, int], zip64: bool = True, **lies) -> bytes:
    """What follows the directory. `truth`: its number of records, size and start."""
    out = b""
    names, limits = ("count", "size", "start"), (0xFFFF, MAX32, MAX32)
    if zip64:
        wide = [lies.get(f"{name}64", value) for name, value in zip(names, truth)]
        out = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 0, 45, 0, 0, wide[0], *wide)
        out += struct.pack("<IIQI", 0x07064B50, 0, lies.get("end64", sum(truth[1:])), 1)
    count, size, start = (
        lies.get(name, min(value, limit)) for name, value, limit in zip(names, truth, limits)
    )
    return out + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, start, 0)


def _header(one: Dict) -> bytes:
    name = one.get("local_name", one["name"]).encode()
    padding = b"FB\3\0ZZZ"
    numbers = (
        one.get("local_flags", one.get("flags", 0x0808)),
        one.get("local_method", one.get("method", 0)),
        0,
        one.get("local_crc", 0),
        one.get("local_stored", 0),
        one.get("local_size", 0),
        len(name),
        one.get("extra_bytes", len(padding)),
    )
    return struct.pack("<IHHHIIIIHH", 0x04034B50, 0, *numbers) + name + padding


def _entry(one: Dict, offset: int) -> bytes:
    name = one.get("entry_name", one["name"]).encode()
    data = one["data"]
    numbers = [one.get("size", len(data)), one.get("stored", len(data)), offset]
    extra = b""
    if one.get("zip64"):
        extra = struct.pack("<HHQQQ", 1, 24, *numbers)[: one.get("zip64_bytes", 28)]
        numbers = [MAX32, MAX32, MAX32]
    return (
        struct.pack(
            "<IHHHHIIIIHHHHHII",
            0x02014B50,
            0,
            0,
            one.get("flags", 0x0808),
            one.get("method", 0),
            0,
            one.get("crc", zlib.crc32(data)),
            numbers[1],
            numbers[0],
            len(name),
            len(extra),
            0,
            one.get("disk", 0),
            0,
            one.get("attributes", 0),
            numbers[2],
        )
        + name
        + extra
    )
