"""A ckptd of the benchmark's own, and what it costs."""

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import threading
import time

from state import SHARED_DIR

_TICKS = os.sysconf("SC_CLK_TCK")


class Daemon:
    """Serves from __init__ to __exit__. Raises RuntimeError where it does not serve, or did not end
    well, with its log."""

    def __init__(self, binary, budget, state_dir=None):
        self._folders = contextlib.ExitStack()
        made = tempfile.TemporaryDirectory
        folder = self._folders.enter_context(made(prefix="ckptd-bench-"))
        self.pool = self._folders.enter_context(made(prefix="ckptd-bench-", dir=SHARED_DIR))
        path = os.path.join(folder, "ckptd.sock")
        self.address = f"unix:{path}"
        self._log = open(os.path.join(folder, "log"), "w+")
        self.process = subprocess.Popen(
            [binary, "--socket", path, "--pool-dir", self.pool, f"--staging-budget={budget}"]
            + ["--state-dir", state_dir or os.path.join(folder, "state")],
            stderr=self._log,
        )
        deadline = time.monotonic() + 30
        while not _answers(path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"ckptd does not serve: {self._read_log()}")
            time.sleep(0.005)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ended_early = self.process.poll() is not None
        self.process.terminate()
        status = self.process.wait()
        log = self._read_log()
        self._log.close()
        self._folders.close()
        if status != 0 or ended_early:
            raise RuntimeError(f"ckptd ended with status {status}: {log}")

    def cpu_seconds(self):
        """What it has used so far, in all its threads."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def own_bytes(self):
        """Its resident memory, without the staging images it maps."""
        return private_bytes(self.process.pid)

    def pool_bytes(self):
        """What its images take."""
        blocks = {}  # by file: one that is moved meanwhile is seen at both places
        for folder, _, files in os.walk(self.pool):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    file = os.lstat(os.path.join(folder, name))
                    blocks[file.st_ino] = file.st_blocks
        return 512 * sum(blocks.values())

    def _read_log(self):
        self._log.seek(0)
        return self._log.read()


def private_bytes(pid):
    """Resident memory of a process that is no shared memory."""
    with open(f"/proc/{pid}/status") as file:
        return 1024 * sum(map(int, re.findall(r"Rss(?:Anon|File):\s+(\d+) kB", file.read())))


class Peak:
    """The highest value of `read` while the block runs."""

    def __init__(self, read, interval=0.01):
        self.value = 0
        self._read = read
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(self._interval):
            self.value = max(self.value, self._read())


def _answers(path):
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
