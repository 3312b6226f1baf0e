"""Names that leave the process: addresses, jobs, saves and paths."""

from __future__ import annotations

import functools
import itertools
import os
import re
import secrets
import socket
import sys
from typing import Union

PathLike = Union[str, "os.PathLike[str]"]

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_NOT_IN_ID = re.compile(r"[^a-zA-Z0-9._-]+")
_UMASK = re.compile(rb"^Umask:\s*([0-7]+)$", re.MULTILINE)
# It stands in the second line.
_STATUS_BYTES = 256
_MAX_ID = 63
_JOB_VARIABLES = ("CKPTD_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
_MAX_CLIENT_BYTES = 256
_counter = itertools.count(1)


def default_address() -> str:
    """Where daemon and clients meet when nobody says otherwise.

    $CKPTD_ADDRESS, else "unix:$XDG_RUNTIME_DIR/ckptd/ckptd.sock", else
    "unix:/tmp/ckptd-$UID/ckptd.sock".
    """
    address = os.environ.get("CKPTD_ADDRESS")
    if address:
        return address
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    if runtime_dir:
        return f"unix:{runtime_dir}/ckptd/ckptd.sock"
    return f"unix:/tmp/ckptd-{os.getuid()}/ckptd.sock"


def socket_path(address: str) -> str:
    """The socket's path of a "unix:PATH" address, "" for any other."""
    if not address.startswith("unix:"):
        return ""
    path = address[len("unix:") :]
    return path[2:] if path.startswith("///") else path


def job_id(wanted: str = "") -> str:
    """`wanted`, else CKPTD_JOB, else the launcher's id, else one of this process's own.

    Characters that an id may not hold become "-"; at most 63 are kept. torchrun's "none", which it
    sets where it was given no id, is no id.
    """
    for value in (wanted, *(os.environ.get(name, "") for name in _JOB_VARIABLES)):
        if value and value != "none":
            return _to_id(value)
    return _own_id(os.getpid())


def save_id() -> str:
    """A new id for a save, unique among all processes of a job."""
    return f"{os.getpid()}-{next(_counter)}-{secrets.token_hex(3)}"


def client_name() -> str:
    """How this process calls itself in `Save.client`: "host:pid program"."""
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    name = f"{socket.gethostname()}:{os.getpid()} {program}"
    return name.encode("utf-8", "replace")[:_MAX_CLIENT_BYTES].decode("utf-8", "ignore")


def local_path(path: PathLike) -> str:
    """`path` made absolute against the working directory, symlinks left as they are.

    Raises ValueError for a URL, or a name that is not UTF-8.
    """
    text = _text(path)
    url = _URL.match(text)
    if url:
        raise ValueError(
            f"{text}: ckptd writes to mounted file systems only, not to {url.group()} URLs. "
            "Give a path, or save with the library that serves these URLs."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{text!r}: the path is not valid UTF-8; rename it.") from None
    if not text:
        raise ValueError("'': the path of a checkpoint is empty; give the name of a file.")
    # normpath would drop "x/.." and so change where a symlink x leads.
    return text if os.path.isabs(text) else os.path.join(os.getcwd(), text)


def is_url(path: PathLike) -> bool:
    """Whether `path` is a "scheme://..."."""
    return _URL.match(_text(path)) is not None


def place(path: PathLike) -> str:
    """`path` as the daemon keys what a Python CheckpointIO does: a URL as it is, else local_path."""
    return _text(path) if is_url(path) else local_path(path)


def umask() -> int:
    """This process's umask, read without changing it for other threads."""
    # Without a file object, which takes twice as long: in a small state's save it shows.
    try:
        status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = _UMASK.search(os.read(status, _STATUS_BYTES))
        finally:
            os.close(status)
        if found:
            return int(found.group(1), 8)
    except OSError:
        pass
    current = os.umask(0o077)
    os.umask(current)
    return current


def _text(path: PathLike) -> str:
    text = os.fspath(path)
    return text if isinstance(text, str) else os.fsdecode(text)


@functools.lru_cache(maxsize=1)
def _own_id(pid: int) -> str:
    return _to_id(f"{socket.gethostname()[: _MAX_ID // 2]}-{pid}")


def _to_id(text: str) -> str:
    cleaned = _NOT_IN_ID.sub("-", text)[:_MAX_ID]
    return cleaned if cleaned.strip("-.") else "job"
