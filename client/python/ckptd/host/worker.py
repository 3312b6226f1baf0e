"""Runs the user's CheckpointIO. A program: worker.py SOCKET SUPERVISOR, a descriptor and a process id.

Whatever it does, even its death, is the supervisor's to report.
"""

import contextlib
import ctypes
import importlib
import os
import pickle
import signal
import socket
import sys
import types
from typing import Any, Dict, Optional

_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _become_like_the_trainer(payload: Dict[str, Any]) -> None:
    sys.path[:] = payload["modules"]
    sys.argv[:] = payload["argv"]
    # For what the trainer's __main__ has, apart from what is here.
    sys.modules["__main__"] = types.ModuleType("__main__")
    # What is printed is seen when it is printed.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


class Runner:
    """The user's object, and the tasks for it. One that cannot be made fails each task."""

    def __init__(self, payload: Dict[str, Any]) -> None:
        self._label = payload["label"]
        self._base: Any = None
        self._error: Optional[BaseException] = None
        try:
            kind, made = pickle.loads(payload["object"])
            self._base = made() if kind == "factory" else made
        except BaseException as error:  # noqa: BLE001 - whoever has a task for it is told
            self._error = error

    def run(self, data: bytes, image: str) -> bytes:
        """Does a task; returns the status that answers it."""
        from ckptd.host.words import exception
        from ckptd.v1 import checkpoint_pb2 as pb
        from google.rpc import status_pb2

        task = pb.HostTask.FromString(data)
        saves = task.HasField("save")
        path = task.save.request.path if saves else task.remove.path
        if self._error is not None:
            what = "which could not be made in its host process"
            return _bytes(exception(path, self._label, self._error, what))
        try:
            if saves:
                self._save(task.save.request.arguments, image)
            else:
                self._base.remove_checkpoint(path)
        except BaseException as error:  # noqa: BLE001 - SystemExit, too
            what = "in save_checkpoint" if saves else "in remove_checkpoint"
            return _bytes(exception(path, self._label, error, what))
        return _bytes(status_pb2.Status())

    def end(self) -> None:
        """Tears the object down."""
        teardown = getattr(self._base, "teardown", None)
        if teardown is not None:
            teardown()

    def _save(self, arguments: bytes, image: str) -> None:
        import torch

        main, (positional, named) = pickle.loads(arguments)
        for name, value in (pickle.loads(main) if main else {}).items():
            module, _, attribute = name.partition(":")
            home = sys.modules.setdefault(module, sys.modules["__main__"])
            setattr(home, attribute, value)
        # On the CPU: a GPU is the trainer's.
        checkpoint = torch.load(image, map_location="cpu", mmap=True, weights_only=False)
        if "checkpoint" in named:
            named["checkpoint"] = checkpoint
        else:
            positional = (checkpoint, *positional)
        self._base.save_checkpoint(*positional, **named)
        _await_threads(self._base)


def _await_threads(io: Any) -> None:
    # An AsyncCheckpointIO saves in a thread, whose end is the save's.
    kinds = {kind.__name__ for kind in type(io).__mro__}
    try:
        if "AsyncCheckpointIO" in kinds:
            io.teardown()
    finally:
        if "AsyncCheckpointIO" in kinds:
            io._error = None  # which it would raise for the next save, too
        if "_WrappingCheckpointIO" in kinds:
            _await_threads(io.checkpoint_io)


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _main() -> None:
    # Becoming like the trainer takes this module's name away: it must not go with it.
    this = sys.modules["__main__"]
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _die_with(int(sys.argv[2]))
    frame = _frames(connection)
    payload = pickle.loads(next(frame))
    _become_like_the_trainer(payload)
    from ckptd.host.process import STATUS
    from ckptd.relay_process import write_frame

    runner = Runner(payload)
    # A save needs it, and it takes seconds where nothing has imported it: rather now than then, when
    # somebody hears of what fails.
    with contextlib.suppress(Exception):
        importlib.import_module("torch")
    for data in frame:
        write_frame(connection, STATUS, runner.run(*pickle.loads(data)))
    runner.end()
    del this


def _frames(connection: socket.socket) -> Any:
    # The first one comes before it is known where modules are.
    head = connection.recv(5, socket.MSG_WAITALL)
    while len(head) == 5:
        size = int.from_bytes(head[1:], "little")
        data = bytearray()
        while len(data) < size:
            piece = connection.recv(min(size - len(data), 1 << 20))
            if not piece:
                return
            data += piece
        yield bytes(data)
        head = connection.recv(5, socket.MSG_WAITALL)


if __name__ == "__main__":
    _main()
