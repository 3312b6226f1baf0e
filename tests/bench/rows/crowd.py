"""P11: many trainers at once, and a long history."""

import functools
import random
import statistics
import time

import grpc
import torch
from forked import Child
from daemon import Daemon
from settings import median, median_ratio, remove
from state import SHARED_DIR, TENSORS
from subjects import Ckptd

from rows.goal import Goal

SHARE = 0.06
TRAINERS = 16
PAGE, SAVES = 1000, 10_000


class Trainer:
    """One of them, with a state of its own."""

    def __init__(self, settings, address, size):
        self.settings = settings
        count = size // TENSORS // 4
        self.state = {f"layer{i}": torch.full((count,), 1.0) for i in range(TENSORS)}
        self.subject = Ckptd(address)
        self.path = None

    def save_at(self, start):
        """Saves when the clock is at `start`; returns when it was durable."""
        self.path = self.settings.path()
        while time.monotonic() < start:
            time.sleep(0.001)
        self.subject.save(self.state, self.path)
        self.subject.wait()
        return time.monotonic()

    def remove(self):
        remove(self.path)

    def close(self):
        self.subject.close()


def measure(settings):
    # The trainers first: a process that has used gRPC is not forked.
    with Daemon(settings.daemon, settings.budget) as daemon:
        goals = [_crowd(settings, daemon)]
    return goals + [_history(settings)]


def _crowd(settings, daemon):
    size = settings.size // TRAINERS
    trainers = TRAINERS if not settings.quick else 4

    def make(size):
        return Child(functools.partial(Trainer, settings, daemon.address, size), settings.log)

    crowd, one = [make(size) for _ in range(trainers)], [make(size * trainers)]

    def durable(children):
        """Seconds until all of them are durable."""
        start = time.monotonic() + 0.05
        for child in children:
            child.send("save_at", start)
        seconds = max(child.receive() for child in children) - start
        # Only now: deleting costs those that still write (remove).
        for child in children:
            child.send("remove")
        for child in children:
            child.receive()
        return seconds

    subjects = {"crowd": crowd, "one": one}
    for children in subjects.values():
        durable(children)

    def sample():
        names = random.sample(list(subjects), len(subjects))
        return {name: durable(subjects[name]) for name in names}

    samples = settings.repeat(SHARE, sample, 2 * settings.rounds)
    for child in crowd + one:
        child.close()
    return Goal(
        "P11",
        f"{trainers} trainers × {size / 1e6:.0f} MB at once, until all are durable",
        median(samples, "crowd"),
        "s",
        f"one trainer × {size * trainers / 1e6:.0f} MB; ratio of speeds",
        median(samples, "one"),
        median_ratio(samples, "one", "crowd"),
        "≥",
        0.9,
        len(samples),
    )


def _history(settings):
    from ckptd.v1 import checkpoint_pb2 as pb

    saves = SAVES if not settings.quick else 200
    page = PAGE if not settings.quick else 50
    # Where the journal waits for no disk: it is not what is measured.
    with Daemon(settings.daemon, settings.budget) as daemon:
        with grpc.insecure_channel(daemon.address) as channel:
            session = _make_saves(channel, pb, saves)
            call = _method(channel.unary_unary, "ListSaves", pb.ListSavesRequest, None)
            taken = []
            while len(taken) < 20 * (saves // page):
                token = ""
                for _ in range(saves // page):
                    request = pb.ListSavesRequest(page_size=page, page_token=token)
                    start = time.perf_counter()
                    answer = call(request)
                    taken.append(time.perf_counter() - start)
                    answer = pb.ListSavesResponse.FromString(answer)
                    if len(answer.saves) != page:
                        raise RuntimeError(f"a page has {len(answer.saves)} saves, not {page}")
                    token = answer.next_page_token
            session.cancel()
    p99 = 1000 * statistics.quantiles(taken, n=100)[98]
    return Goal(
        "P11",
        f"ListSaves, page of {page} among {saves} saves, 99th percentile",
        p99,
        "ms",
        "",
        None,
        p99,
        "≤",
        10,
        len(taken),
        f"median {1000 * statistics.median(taken):.1f} ms",
    )


def _method(make, name, request, response):
    return make(
        f"/ckptd.v1.CheckpointService/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=response and response.FromString,
    )


def _make_saves(channel, pb, count):
    """Saves that were begun and given up: as much history as any other. Returns the session."""
    open_session = _method(
        channel.unary_stream, "OpenSession", pb.OpenSessionRequest, pb.SessionEvent
    )
    begin = _method(channel.unary_unary, "BeginSave", pb.BeginSaveRequest, pb.BeginSaveResponse)
    abort = _method(channel.unary_unary, "AbortSave", pb.AbortSaveRequest, pb.Save)
    session = open_session(pb.OpenSessionRequest(client="bench"))
    session_id = next(session).session_id
    for i in range(count):
        request = pb.BeginSaveRequest(
            session_id=session_id,
            name=f"jobs/bench/saves/{i}",
            path=f"{SHARED_DIR}/never-written.pt",
            backend="torch",
            object_bytes=64,
        )
        begin(request)
        abort(pb.AbortSaveRequest(name=request.name))
    return session
