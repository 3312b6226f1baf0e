"""Makes the golden files here with the torch that is installed; see README.md.

usage: make_golden.py FOLDER
"""

import io
import pathlib
import sys
import tempfile

import torch


def small():
    """What torch.save writes for three storages, one of them empty."""
    state = {
        "weight": torch.arange(5, dtype=torch.float32),
        "empty": torch.empty(0),
        "mask": torch.tensor([True, False, True]),
    }
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def zip64(folder):
    """The same for a storage of 4 GiB before a small and an empty one, the 4 GiB cut out."""
    large = 1 << 32
    path = pathlib.Path(folder, "archive.pt")
    with torch.serialization.skip_data():
        state = [torch.empty(n, dtype=torch.uint8) for n in (large, 8, 0)]
        torch.save(state, path)
    offset = torch._C.PyTorchFileReader(str(path)).get_record_offset("data/0")
    with path.open("rb") as file:
        head = file.read(offset)
        file.seek(offset + large)
        return head + file.read()


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.joinpath("small.pt").write_bytes(small())
    with tempfile.TemporaryDirectory() as scratch:
        folder.joinpath("zip64_without_payload.pt").write_bytes(zip64(scratch))


main()
