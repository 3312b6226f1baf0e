"""Where figures come from: the machine, how busy it is, and the versions of what is compared."""

import glob
import importlib.metadata
import os
import platform
import re
import subprocess

PACKAGES = ("torch", "pytorch-lightning", "safetensors", "grpcio", "protobuf")


def describe(folder, pool):
    """The machine, with the file systems of `folder` and `pool`."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": 1024 * int(_field("/proc/meminfo", "MemTotal").split()[0]),
        "kernel": platform.release(),
        "disk": _file_system(folder),
        "pool": _file_system(pool),
        "huge_pages": _chosen("enabled"),
        "huge_pages_in_shared_memory": _chosen("shmem_enabled"),
        "reclaim": _reclaim(),
        "python": platform.python_version(),
    }


def versions(ctl):
    """Of the packages that are installed, and of ckptd."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    answer = subprocess.run([ctl, "--version"], check=True, stdout=subprocess.PIPE, text=True)
    found["ckptd"] = answer.stdout.split()[-1]
    return found


class Load:
    """How much of the machine others take: what is used beyond what this run's processes use."""

    def __init__(self):
        self._start = self._used()
        self._own = self._ours()
        self.average_before = os.getloadavg()[0]

    def others(self):
        """The share of all cores that others took since this was made."""
        used, total = (now - then for now, then in zip(self._used(), self._start))
        ticks = (self._ours() - self._own) * os.sysconf("SC_CLK_TCK")
        return max(0.0, used - ticks) / total if total else 0.0

    @staticmethod
    def _used():
        with open("/proc/stat") as file:
            fields = list(map(int, file.readline().split()[1:9]))
        idle = fields[3] + fields[4]
        return sum(fields) - idle, sum(fields)

    @staticmethod
    def _ours():
        """Seconds of this process and of those that it has waited for."""
        return sum(os.times()[:4])


def _field(path, name):
    with open(path) as file:
        for line in file:
            if line.startswith(name):
                return line.split(":", 1)[1].strip()
    return "unknown"


def _file_system(folder):
    answer = subprocess.run(
        ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", folder],
        stdout=subprocess.PIPE,
        text=True,
    )
    return (answer.stdout.split() or ["unknown"])[0]


def _chosen(name):
    found = re.search(r"\[(\w+)\]", _text(f"/sys/kernel/mm/transparent_hugepage/{name}"))
    return found.group(1) if found else "unknown"


def _reclaim():
    """What takes idle or free pages away; who touches them again pays for fresh ones."""
    found = []
    for daemon in glob.glob("/sys/kernel/mm/damon/admin/kdamonds/[0-9]*"):
        if _text(f"{daemon}/state") == "on":
            schemes = glob.glob(f"{daemon}/contexts/*/schemes/*/action")
            found += [f"DAMON ({_text(scheme)})" for scheme in schemes]
    if glob.glob("/sys/bus/virtio/drivers/virtio_balloon/virtio*"):
        found.append("a balloon")
    if len(_text("/proc/swaps").splitlines()) > 1:
        found.append("swap")
    return found


def _text(path):
    """Empty where it cannot be read."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
