"""What streams a state has a large send buffer."""

from __future__ import annotations

import os
import socket
import stat

import torch


def send_buffers(path):
    """Bytes, of each connection of this process to the socket `path`."""
    sizes = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.getpeername() == path:
                    sizes.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
        except OSError:  # not connected, or listdir's own
            continue
    return sizes


# With a daemon of its own: clients of other tests may still be connected to the one that all share.
def test_only_streams_widen_it(make_daemon, tmp_path):
    daemon = make_daemon()
    state = {"w": torch.arange(1000)}
    path = daemon.address[len("unix:") :]
    with socket.socket(socket.AF_UNIX) as fresh:
        usual = fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    daemon.client(transport="shm").save(state, tmp_path / "shared").result()
    assert send_buffers(path) == [usual]
    daemon.client(transport="grpc").save(state, tmp_path / "streamed").result()
    (widened,) = send_buffers(path)
    assert widened > usual


def test_descriptors_are_left_as_they_are(daemon, tmp_path):
    client = daemon.client(transport="grpc")
    client.save({}, tmp_path / "first").result()
    before = sorted(os.listdir("/proc/self/fd"))
    client.save({}, tmp_path / "second").result()
    assert sorted(os.listdir("/proc/self/fd")) == before
