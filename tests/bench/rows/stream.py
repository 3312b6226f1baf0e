"""P7: saves without shared memory, over the gRPC stream."""

import json
import os
import subprocess

from daemon import Daemon
from settings import median, median_ratio, remove, timed
from subjects import Ckptd

from rows.goal import Goal

SHARE = 0.03
LIMIT = "raw unix-socket stream of the same bytes; ratio of speeds"


def measure(settings):
    state = settings.state.smaller(4)
    with Daemon(settings.daemon, settings.budget) as daemon:
        subject = Ckptd(daemon.address, reserve=state.tensors, transport="grpc")

        def sample():
            path = settings.path()
            socket = settings.limits.socket_stream(state.nbytes)
            taken, _ = timed(subject.save, state.tensors, path)
            subject.wait()
            remove(path)
            return {"socket": socket, "save": taken}

        samples = settings.repeat(SHARE, sample)
        subject.close()
        native = _native(settings, daemon, state.nbytes)
    return [
        _goal("Python client", samples, state.nbytes, 0.25),
        *([_goal("C++ client", native, state.nbytes, 0.4)] if native else []),
    ]


def _native(settings, daemon, size):
    """Samples of the C++ client, with a raw socket of its own, where its benchmark is built."""
    binary = os.path.join(settings.build, "bench", "ckptd_bench_stream")
    if not os.access(binary, os.X_OK):
        return []
    path = settings.path()
    answer = subprocess.run(
        [binary, path, "--address", daemon.address, "--rounds", str(settings.rounds)]
        + ["--megabytes", str(size // 1_000_000)],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    remove(path)
    found = json.loads(answer)
    pairs = zip(found["raw_socket_seconds"], found["stream_seconds"])
    return [{"socket": socket, "save": save} for socket, save in pairs]


def _goal(client, samples, size, bound):
    return Goal(
        "P7",
        f"save of {size / 1e6:.0f} MB over the gRPC stream, {client}",
        median(samples, "save"),
        "s",
        LIMIT,
        median(samples, "socket"),
        median_ratio(samples, "socket", "save"),
        "≥",
        bound,
        len(samples),
    )
