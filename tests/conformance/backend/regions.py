"""What each byte of a checkpoint file is for, and of which it does not matter whether it changes."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from typing import Iterator, List

#: (What, bytes, whether a changed bit is damage.) What is not matters to no reader: neither the place of
#: anything, nor its length, nor its bytes depend on it, and there are no checksums of it. Writers
#: differ in it: to compare it would call whole files damaged.
_HEADER = [
    ("signature", 4, True),
    ("version needed", 2, False),
    ("flags and method", 4, True),
    ("time and date", 4, False),
    ("CRC and sizes", 12, True),
    ("lengths", 4, True),
]
_ENTRY = [
    ("signature", 4, True),
    ("versions", 4, False),
    ("flags and method", 4, True),
    ("time and date", 4, False),
    ("CRC, sizes and lengths", 18, True),
    ("disk", 2, True),
    ("internal attributes", 2, False),
    ("external attributes", 4, False),  # but for the bit that makes a folder of it
    ("offset", 4, True),
]
_END64 = [
    ("signature and length", 12, True),
    ("versions", 4, False),
    ("disks, numbers, size and offset", 40, True),
]
_LOCATOR = [("all", 20, True)]
_END = [("all", 22, True)]


@dataclass(frozen=True)
class Region:
    """Bytes [begin, end) of a file."""

    name: str
    begin: int
    end: int
    counts: bool  # whether a changed bit in it is damage

    def __str__(self) -> str:
        return f"{self.name}, bytes {self.begin} to {self.end}"


def regions(content: bytes) -> List[Region]:
    """All of a file of ours, from front to back; asserts that there is nothing between them."""
    if not content.startswith(b"PK\3\4"):  # safetensors, with a checksum of the whole file
        header = 8 + int.from_bytes(content[:8], "little")
        parts = [("length", 0, 8), ("header", 8, header), ("data", header, len(content))]
        found = [Region(name, begin, end, counts=True) for name, begin, end in parts]
    else:
        found = [one for one in _of_zip(content) if one.begin < one.end]
    assert [one.begin for one in found[1:]] == [one.end for one in found[:-1]]
    assert (found[0].begin, found[-1].end) == (0, len(content))
    return found


def _of_zip(content: bytes) -> Iterator[Region]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = sorted(archive.filelist, key=lambda one: one.header_offset)
        at = archive.start_dir
    behind = [one.header_offset for one in records[1:]] + [at]
    for record, end in zip(records, behind):
        name, extra = struct.unpack_from("<HH", content, record.header_offset + 26)
        begin = record.header_offset + 30
        yield from _fields("record header", _HEADER, record.header_offset)
        yield Region("record header: name", begin, begin + name, counts=True)
        data = begin + name + extra
        yield Region("padding", begin + name, data, counts=False)
        yield Region("data", data, data + record.file_size, counts=True)
        yield Region("descriptor", data + record.file_size, end, counts=False)
    for _ in records:
        name, extra = struct.unpack_from("<HH", content, at + 28)
        assert extra == 0
        yield from _fields("directory", _ENTRY, at)
        yield Region("directory: name", at + 46, at + 46 + name, counts=True)
        at += 46 + name
    for part, fields in (("end64", _END64), ("locator", _LOCATOR), ("end", _END)):
        yield from _fields(part, fields, at)
        at += sum(length for _name, length, _counts in fields)


def _fields(part: str, fields: list, at: int) -> Iterator[Region]:
    for name, length, counts in fields:
        yield Region(f"{part}: {name}", at, at + length, counts)
        at += length
