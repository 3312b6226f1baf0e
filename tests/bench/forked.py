"""Processes that measure: forked, so that they have torch at once, and what breaks in one breaks
nothing else."""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback

import torch

# What a child has to let go of what it holds.
CLOSE_SECONDS = 20
_FORK = multiprocessing.get_context("fork")


class ChildError(Exception):
    """What a child could not do, and why, in one line."""


class Child:
    """A process that makes `factory()`, an object whose methods `call` then runs there.

    timeout: seconds for each call; a child that takes longer is ended. Its output goes to `log`.
    """

    #: Threads of torch in each child; the parent has one, so that it can be forked.
    threads = len(os.sched_getaffinity(0))

    def __init__(self, factory, log, timeout=180):
        self._timeout = timeout
        self._pipe, theirs = _FORK.Pipe()
        sys.stdout.flush()
        self._process = _FORK.Process(target=_serve, args=(theirs, factory, log))
        self._process.start()
        theirs.close()

    def call(self, method, *arguments):
        """Raises ChildError, also for all later calls where the process has ended."""
        self.send(method, *arguments)
        return self.receive()

    def send(self, method, *arguments):
        """Begins a call, which `receive` ends."""
        self._method = method
        try:
            self._pipe.send((method, arguments))
        except OSError as error:
            raise self._ended() from error

    def has_answered(self):
        """Whether `receive` would return at once."""
        return self._pipe.poll(0)

    def receive(self):
        """What the call that was begun has returned. Raises ChildError."""
        try:
            if not self._pipe.poll(self._timeout):
                self._process.kill()
                raise ChildError(f"{self._method} took more than {self._timeout} s")
            ok, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if not ok:
            raise ChildError(value)
        return value

    def close(self):
        """Ends the process."""
        self._timeout = min(self._timeout, CLOSE_SECONDS)
        with contextlib.suppress(ChildError):
            self.call("close")
        self._pipe.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _ended(self):
        self._process.join(10)
        return ChildError(f"its process ended with {self._process.exitcode}")


def _serve(pipe, factory, log):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    torch.set_num_threads(Child.threads)
    made = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if made is None:
                made = factory()
            answer = (True, getattr(made, method)(*arguments))
        except BaseException as error:  # DCP's CheckpointException is no Exception
            traceback.print_exc()
            answer = (False, _one_line(error))
        pipe.send(answer)
        if method == "close":
            return


def _one_line(error):
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) < 300 else f"{text[:300]} ..."
