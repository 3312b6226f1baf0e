"""Copies from devices, and the pinning of images. CUDA itself only where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from ckptd import pinned
from ckptd.session import session_for
from ckptd.v1 import checkpoint_pb2 as pb
from objects import same
from test_reserve import mappings

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


class Cudart:
    """Registers nothing, and notes what it is asked for."""

    def __init__(self, error=0):
        self.calls = []
        self.error = error

    def cudaHostRegister(self, address, size, flags):  # noqa: N802 - CUDA's name
        self.calls.append(("register", address, size))
        return self.error

    def cudaHostUnregister(self, address):  # noqa: N802
        self.calls.append(("unregister", address))
        return 0


@pytest.fixture
def cudart(monkeypatch):
    fake = Cudart()
    monkeypatch.setattr(pinned, "_cudart", lambda: fake)
    return fake


def test_image_is_pinned_once_as_long_as_its_pages_are_the_same(cudart):
    pin = pinned.Pin()
    pin.hold(4096, pb.Image(size_bytes=10_000))
    pin.hold(4096, pb.Image(size_bytes=12_288))
    assert cudart.calls == [("register", 4096, 12_288)]
    pin.hold(4096, pb.Image(size_bytes=12_289))  # it has grown
    pin.hold(4096, pb.Image(size_bytes=12_289, cuts=1))  # and was cut and has grown again
    again = [("unregister", 4096), ("register", 4096, 16_384)]
    assert cudart.calls[1:] == again + again
    pin.release()
    pin.release()
    assert cudart.calls[5:] == [("unregister", 4096)]


def test_what_cuda_refuses_is_not_tried_again(cudart):
    cudart.error = 1
    pin = pinned.Pin()
    pin.hold(4096, pb.Image(size_bytes=1))
    pin.hold(4096, pb.Image(size_bytes=1))
    pin.release()
    assert cudart.calls == [("register", 4096, 4096)]


def test_pin_goes_with_the_mapping(cudart, make_daemon):
    client = make_daemon().client()
    client.reserve(1 << 20, images=1, wait=True)
    (mapping,) = mappings(client).values()
    mapping.pin.hold(mapping.address, pb.Image(size_bytes=1 << 20))
    client.close()
    assert cudart.calls[1:] == [("unregister", mapping.address)]


def test_cuts_are_told(make_daemon, tmp_path):
    client = make_daemon().client()
    client.reserve(6 << 20, images=1, wait=True)
    session = session_for(client.address)
    seen = []
    real = session.mappings.hold
    session.mappings.hold = lambda image: (seen.append(image.cuts), real(image))[1]
    for size in (6 << 20, 5 << 20, 6 << 20, 5 << 20):
        client.save(torch.zeros(size, dtype=torch.uint8), tmp_path / "a.pt").result()
    assert seen == [0, 1, 1, 2]


@needs_gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_cuda_tensors(overlap, client, tmp_path):
    model = torch.nn.Linear(2000, 2000, device="cuda")
    optimizer = torch.optim.Adam(model.parameters())
    for number in range(3):
        model(torch.randn(8, 2000, device="cuda")).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        before = {name: value.cpu().clone() for name, value in state["model"].items()}
        save = client.save(state, tmp_path / "a.pt", overlap=optimizer if overlap else None)
        if not overlap:
            with torch.no_grad():
                model.weight.zero_()
        else:
            model(torch.randn(8, 2000, device="cuda")).square().sum().backward()
            optimizer.step()
        save.result()
        loaded = torch.load(tmp_path / "a.pt", map_location="cpu", weights_only=True)
        assert same(dict(loaded["model"]), before), number
