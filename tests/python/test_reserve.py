"""Images that are mapped before a save has them: what that may do, and what it must not."""

from __future__ import annotations

import os

import torch
from ckptd import rpc
from ckptd.reserve import map_ahead
from ckptd.session import session_for
from ckptd.v1 import checkpoint_pb2 as pb
from harness import WAIT_SECONDS, wait_until
from test_processes import in_child

SIZE = 6 << 20
STATE_BYTES = SIZE - 100_000


def mappings(client):
    """The mappings that a client's session keeps, by the id of their image."""
    kept = session_for(client.address).mappings._mappings
    return {key[0]: mapping for key, mapping in kept.items()}


def resident_bytes(address):
    """How much of the mapping that begins at `address` has its page tables filled."""
    with open("/proc/self/smaps", encoding="utf-8") as maps:
        for line in maps:
            if line.startswith(f"{address:x}-"):
                break
        rss = next(line for line in maps if line.startswith("Rss:"))
    return int(rss.split()[1]) << 10


def test_first_save_finds_its_image_mapped_and_populated(make_daemon, tmp_path):
    client = make_daemon().client()
    assert client.reserve(SIZE, images=2, wait=True) == 2
    before = mappings(client)
    assert len(before) == 2
    assert all(resident_bytes(one.address) >= SIZE for one in before.values())
    # As the pages lie in the file: else huge ones are mapped a small page at a time.
    assert all(one.address % (2 << 20) == 0 for one in before.values())

    state = torch.arange(SIZE + 200_000).to(torch.uint8)
    for size in (STATE_BYTES, SIZE + 200_000, STATE_BYTES, SIZE + 200_000):  # neither moves
        client.save(state[:size].clone(), tmp_path / "a.pt").result()
    assert {k: id(v) for k, v in mappings(client).items()} == {k: id(v) for k, v in before.items()}
    loaded = torch.load(tmp_path / "a.pt")
    assert torch.equal(loaded, state)


def test_without_wait_it_happens_behind(make_daemon):
    client = make_daemon().client()
    assert client.reserve(SIZE, images=1) <= 1
    wait_until(
        lambda: [m.populated_bytes for m in list(mappings(client).values())] == [SIZE],
        "the image to be mapped",
    )
    client.close()
    assert not mappings(client)


def test_stream_maps_nothing(make_daemon):
    client = make_daemon().client(transport="grpc")
    assert client.reserve(SIZE, images=1, wait=True) == 1
    assert not mappings(client)


def test_image_that_another_got_meanwhile_keeps_its_bytes(make_daemon, tmp_path):
    daemon = make_daemon("--staging-budget", "8MiB")
    client = daemon.client()
    client.reserve(SIZE, images=1, wait=True)
    (image_id, mapping), = mappings(client).items()
    session = session_for(client.address)
    with rpc.open_channel(daemon.address) as channel:
        stub = rpc.Stub(channel)
        events = stub.OpenSession(pb.OpenSessionRequest(client="other"))
        request = pb.BeginSaveRequest(
            session_id=next(events).session_id,
            name="jobs/other/saves/one",
            path=str(tmp_path / "other.pt"),
            backend="torch",
            object_bytes=STATE_BYTES // 2,
        )
        image = stub.BeginSave(request, timeout=WAIT_SECONDS).image
        assert image.id == image_id and image.size_bytes < SIZE
        with open(image.path, "r+b") as file:
            file.write(b"x" * image.size_bytes)
            # It was cut: what lies behind its end is no page of ours any more, and no signal.
            assert not mapping.populate(0, SIZE)
            stale = pb.Image(
                path=image.path, size_bytes=SIZE, inode=image.inode, id=image.id
            )
            mapping.populated_bytes = 0
            map_ahead(session, [stale])
            file.truncate(SIZE)
            assert mapping.populate(0, SIZE)
            file.seek(0)
            assert file.read(image.size_bytes) == b"x" * image.size_bytes
        events.cancel()


def test_image_that_is_another_file_now_is_left_alone(make_daemon, tmp_path):
    client = make_daemon().client()
    client.reserve(1, images=1, wait=True)
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    before = mappings(client)
    wrong = pb.Image(path=str(other), size_bytes=4096, inode=1, id=77)
    gone = pb.Image(path=str(tmp_path / "gone"), size_bytes=4096, inode=1, id=78)
    map_ahead(session_for(client.address), [wrong, gone])
    assert mappings(client) == before


def test_forked_child_keeps_no_image(make_daemon):
    daemon = make_daemon()
    client = daemon.client()
    client.reserve(SIZE, images=2, wait=True)

    def open_images():
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return [os.readlink(link) for link in links if os.path.exists(link)]

    pool = str(daemon.pool)
    assert len([path for path in open_images() if path.startswith(pool)]) == 2

    def look():
        assert not [path for path in open_images() if path.startswith(pool)]

    assert in_child(look) == 0
