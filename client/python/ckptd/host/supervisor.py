"""Speaks with the daemon: takes its tasks, gives them to a worker, and reports.

Ends with the daemon's stream, or when the daemon is gone: at once if that has started this process
(its standard input is the daemon's pipe then), else after it has tried to reach it again.
"""

from __future__ import annotations

import os
import queue
import signal
import stat
import sys
import tempfile
import threading
import time
from contextlib import closing
from typing import Any, Iterator, Optional, Tuple

import grpc
from google.rpc import code_pb2, status_pb2

from .. import rpc
from ..v1 import checkpoint_pb2 as pb
from .process import Worker
from .words import failure

#: Seconds that a daemon which went away gets to come back, where a client has started this process.
RETURN_SECONDS = 60.0
_RETRY_SECONDS = 0.2
# Reports that wait to be sent; whoever prints more waits.
_MAX_REPORTS = 1000
_LOG_SECONDS = 5.0
# What the daemon says to a host that it does not want: another has attached itself, or none is needed.
_UNWANTED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
)


class Supervisor:
    """One host. `run` returns the exit code of the process."""

    def __init__(self, host: str, address: str) -> None:
        self._host = host
        self._address = address
        # What happens, for the thread that runs: ("task", HostTask), ("answer", (worker, bytes)),
        # ("death", worker), ("end", RpcError or None).
        self._events: queue.Queue[Tuple[str, Any]] = queue.Queue()
        self._reports: queue.Queue[Optional[pb.HostReport]] = queue.Queue(_MAX_REPORTS)
        self._payload = b""
        self._worker: Optional[Worker] = None
        self._task: Optional[pb.HostTask] = None
        self._image_copy = ""
        self._stub: Any = None

    def run(self) -> int:
        """Serves until it is not needed any more."""
        deadline = time.monotonic() + RETURN_SECONDS
        daemons_child = _is_pipe(0)
        if daemons_child:
            threading.Thread(target=_end_with_daemon, daemon=True).start()
        while True:
            attached, error = self._attach()
            self._drop_task()
            if error is None or error.code() in _UNWANTED:
                if error is not None:
                    _say(f"{self._host}: {error.details()}")
                self._end_worker()
                return 0
            if attached:
                deadline = time.monotonic() + RETURN_SECONDS
            # A daemon that is slow to answer is there: its end is ours, too. One that had us and has
            # not any more counts on our end.
            if (daemons_child and attached) or time.monotonic() > deadline:
                _say(f"{self._address}: the daemon is gone: {error.details()}")
                return 1
            time.sleep(_RETRY_SECONDS)

    def _attach(self) -> Tuple[bool, Optional[grpc.RpcError]]:
        """Serves one stream; returns whether the daemon took it, and how it ended."""
        self._events = queue.Queue()
        self._reports = queue.Queue(_MAX_REPORTS)
        with closing(rpc.open_channel(self._address)) as channel:
            self._stub = rpc.Stub(channel)
            attach = pb.HostReport.Attach(host=self._host, pid=os.getpid())
            self._reports.put(pb.HostReport(attach=attach))
            stream = self._stub.AttachHost(iter(self._reports.get, None))
            events = self._events
            threading.Thread(target=_read, args=(stream, events), daemon=True).start()
            attached = False
            try:
                while True:
                    kind, what = self._events.get()
                    if kind == "end":
                        return attached, what
                    attached = True
                    self._handle(kind, what)
            finally:
                self._reports.put(None)

    def _handle(self, kind: str, what: Any) -> None:
        if kind == "task":
            self._take(what)
        elif kind == "answer":
            worker, status = what
            if worker is self._worker and self._task is not None:
                self._answer(status_pb2.Status.FromString(status))
        elif what is self._worker:  # which is dead
            self._bury()

    def _take(self, task: pb.HostTask) -> None:
        kind = task.WhichOneof("task")
        if kind == "setup":
            self._payload = task.setup.payload
            self._ready_worker()
        elif kind == "cancel":
            if self._task is not None and self._task.task_id == task.task_id:
                path = _path_of(self._task)
                self._kill_worker()
                self._answer(failure(path, "was cancelled", "CANCELLED_BY_REQUEST", code_pb2.CANCELLED))
                self._ready_worker()
        elif kind in ("save", "remove"):
            self._task = task
            self._begin(task)
        else:
            self._task = task
            self._answer(
                failure("", f"a Python host has no task {kind!r}", "", code_pb2.UNIMPLEMENTED)
            )

    def _begin(self, task: pb.HostTask) -> None:
        try:
            image = self._image_of(task) if task.HasField("save") else ""
        except (OSError, grpc.RpcError) as error:
            self._answer(failure(_path_of(task), f"its image cannot be read: {error}", "HOST_DIED"))
            return
        worker = self._ready_worker()
        if not worker.give(task.SerializeToString(), image):
            self._bury()

    def _image_of(self, task: pb.HostTask) -> str:
        """A path of the image in this container: of the daemon's file, or of a copy."""
        image = task.save.image
        try:
            if os.stat(image.path).st_ino == image.inode and os.access(image.path, os.R_OK):
                return str(image.path)
        except OSError:
            pass
        descriptor, self._image_copy = tempfile.mkstemp(prefix="ckptd-image-")
        with os.fdopen(descriptor, "wb") as copy:
            for piece in self._stub.ReadLoad(pb.ReadLoadRequest(load_id=task.task_id)):
                copy.write(piece.data)
        return self._image_copy

    def _ready_worker(self) -> Worker:
        """The worker; a new one where the last has died. To be called by the main thread alone."""
        if self._worker is not None and self._worker.ended():
            self._worker.kill()
            self._worker = None
        if self._worker is None:
            self._worker = Worker(self._payload, self._worker_says, self._log)
        return self._worker

    def _worker_says(self, worker: Worker, status: Optional[bytes]) -> None:
        if status is None:
            self._events.put(("death", worker))
        else:
            self._events.put(("answer", (worker, status)))

    def _log(self, text: str) -> None:
        try:
            self._reports.put(pb.HostReport(log=pb.HostReport.Log(text=text)), timeout=_LOG_SECONDS)
        except queue.Full:  # nobody takes it
            _say(text)

    def _bury(self) -> None:
        """Tells of the death of the worker where it had a task."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        end = worker.last_words()
        if self._task is None:
            self._log(f"the worker {end}")
            return
        task = self._task
        doing = "wrote" if task.HasField("save") else "removed"
        path = _path_of(task)
        self._answer(
            failure(path, f"host process of {worker.label} {end} while it {doing} {path}", "HOST_DIED")
        )
        # Its imports take seconds: rather now than when there is a task. One that dies of them has
        # had none, and is left alone.
        self._ready_worker()

    def _answer(self, status: status_pb2.Status) -> None:
        task, self._task = self._task, None
        self._remove_copy()
        if task is not None:
            done = pb.HostReport.Done(task_id=task.task_id, status=status)
            self._reports.put(pb.HostReport(done=done))

    def _drop_task(self) -> None:
        """Ends what is under way for a daemon that is gone: it begins it anew."""
        if self._task is not None:
            self._task = None
            self._kill_worker()
        self._remove_copy()

    def _remove_copy(self) -> None:
        if self._image_copy:
            os.unlink(self._image_copy)
            self._image_copy = ""

    def _kill_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()


def _read(stream: Any, events: "queue.Queue[Tuple[str, Any]]") -> None:
    try:
        for task in stream:
            events.put(("task", task))
        events.put(("end", None))
    except grpc.RpcError as error:
        events.put(("end", error))


def _path_of(task: pb.HostTask) -> str:
    return task.save.request.path if task.HasField("save") else task.remove.path


def _is_pipe(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def _end_with_daemon() -> None:
    """Ends the process when the daemon's pipe does; the kernel ends the worker with it."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _say(text: str) -> None:
    print(f"ckptd host: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the host that the environment names."""
    try:
        host, address = os.environ.pop("CKPTD_HOST_ID"), os.environ["CKPTD_ADDRESS"]
    except KeyError as missing:
        _say(f"{missing}: not set; the daemon, or a client of it, starts this program.")
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, and not meant for this process
    return Supervisor(host, address).run()
