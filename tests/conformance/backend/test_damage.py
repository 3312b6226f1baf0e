"""Each byte of a checkpoint, changed: what a load and a verification make of it."""

from __future__ import annotations

import grpc
import pytest
import torch
from ckptd.v1 import checkpoint_pb2 as pb
from regions import regions
from tested import ckptctl_verifies, plain

STATE = {"w": torch.arange(6.0), "b": torch.tensor([1, 2, 3])}
#: Of the bytes of one file; a hole in a larger one is as good as any other.
_MOST = 400
#: Of a file of torch, each of which is damaged.
_PARTS = {"record header", "padding", "data", "descriptor", "directory", "end64", "locator", "end"}


def files_of(path):
    """The files of a checkpoint; not those of a folder beside it."""
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def flips(path, most=_MOST):
    """Has each byte of each file changed in turn, and gives the place."""
    for file in files_of(path):
        content = file.read_bytes()
        step = len(content) // most + 1
        for at in range(0, len(content), step):
            changed = bytearray(content)
            changed[at] ^= 1 << at % 8
            file.write_bytes(changed)
            yield file, at
        file.write_bytes(content)


def cuts(path):
    """Has each file cut, and lengthened, and gives the place."""
    for file in files_of(path):
        content = file.read_bytes()
        for length in sorted({0, 1, len(content) // 2, max(0, len(content) - 1)}):
            file.write_bytes(content[:length])
            yield file, length
        file.write_bytes(content)


@pytest.fixture
def saved(backend, folder):
    """A checkpoint."""
    backend.save(STATE, folder / "a").result()
    return folder / "a"


def test_a_load_is_right_or_an_error(backend, saved):
    """What has checksums never gives wrong numbers; what has none at least ends no process."""
    has_checksums = not (backend.is_plugin or backend.is_python)
    for damage in (flips, cuts):
        for file, at in damage(saved):
            try:
                loaded = backend.load(saved)
            except Exception as error:  # noqa: BLE001 - what torch or a CheckpointIO says of it
                assert getattr(error, "reason", "") != "HOST_DIED", f"{file} at {at}: {error}"
            else:
                assert not has_checksums or plain(loaded) == plain(STATE), f"{file} at {at}"
    assert plain(backend.load(saved)) == plain(STATE)


def test_verify(backend, saved):
    if backend.is_plugin or backend.is_python:
        pytest.skip("nothing in its checkpoints would tell")
    assert backend.is_whole(saved)
    found = regions(saved.read_bytes())
    assert {one.name.partition(":")[0] for one in found} >= (
        {"header", "data"} if backend.subject.name == "safetensors" else _PARTS
    )
    missed = []
    for _file, at in flips(saved, most=saved.stat().st_size):
        if backend.is_whole(saved):
            missed.append(at)
            # What no reader looks at: the numbers are right all the same.
            assert plain(backend.load(saved)) == plain(STATE)
    counting = [one for one in found if one.counts]
    assert not [str(one) for one in counting for at in missed if one.begin <= at < one.end]
    for _file, length in cuts(saved):
        assert not backend.is_whole(saved), length


def test_verify_by_the_daemon(backend, saved):
    """What the backend's own function says: of a byte of each region of each of its files."""

    def verdict():
        request = pb.VerifyCheckpointRequest(path=str(saved), backend=backend.subject.name)
        try:
            backend.daemon.call("VerifyCheckpoint", request)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    if backend.is_python:
        pytest.skip("the daemon never reads its checkpoints")
    if verdict() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION):
        pytest.skip("nothing in its checkpoints would tell")
    assert verdict() == grpc.StatusCode.OK
    if backend.is_plugin:
        pytest.skip("what the bytes of its files are for is its own")
    for file in [saved, *saved.parent.rglob(f"{saved.name}.tensors/*")]:
        content = file.read_bytes()
        # The last one of each kind: of the directory's entries and of the records.
        for region in {one.name: one for one in regions(content)}.values():
            changed = bytearray(content)
            changed[(region.begin + region.end) // 2] ^= 1
            file.write_bytes(changed)
            damaged = grpc.StatusCode.DATA_LOSS if region.counts else grpc.StatusCode.OK
            assert verdict() == damaged, f"{file.name}: {region}"
        file.write_bytes(content)
    assert verdict() == grpc.StatusCode.OK


def test_ckptctl_verify(backend, saved):
    found = ckptctl_verifies(saved)
    if found.returncode != 0 and not backend.is_whole(saved):
        pytest.skip("nothing in its checkpoints would tell")
    if "cannot be verified" in found.stdout:
        pytest.skip("ckptctl verify does not know its files")
    assert found.returncode == 0, found.stdout
    content = bytearray(saved.read_bytes())
    at = content.find(STATE["w"].numpy().tobytes())
    if at < 0 and backend.subject.name == "xla-xser":
        pytest.skip("its tensors are in files of their own")
    content[at] ^= 1
    saved.write_bytes(content)
    found = ckptctl_verifies(saved)
    assert found.returncode == 1
    assert "CRC-32" in found.stdout
