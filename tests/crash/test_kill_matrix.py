"""The daemon dies at each step of its protocols, by SIGKILL, and is started again.

docs/crash-matrix.md has what must hold after each. What was accepted is what a call has answered
OK for; the places tell for which deaths it must, and for which it may not, be so.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import grpc
import pytest
import torch
from durability import check_end, check_files, check_journal, is_temporary, open_journal
from harness import REPO, WAIT_SECONDS, Daemon, wait_until
from pieces import FileDigests, digest

from ckptd.capture import capture
from ckptd.errors import SessionLostError
from ckptd.session import Session
from ckptd.transfer import Attempt, Caller
from ckptd.v1 import checkpoint_pb2 as pb

_NO_TMPFILE = Path(__file__).with_name("no_tmpfile.py")
_LIST = re.compile(r"kFailpoints\[\] = \{(.*?)\n\};", re.DOTALL)
#: In the order in which the daemon passes them.
FAILPOINTS = re.findall(
    r'^    "(\S+)",$',
    _LIST.search((REPO / "server" / "os" / "failpoints.h").read_text(encoding="utf-8"))[1],
    re.MULTILINE,
)
JOB = "matrix"


class Case(NamedTuple):
    """A place to die at, and a way that leads by it."""

    point: str
    way: str
    tmpfile: bool = True

    def __str__(self) -> str:
        return f"{self.point}, {self.way}{'' if self.tmpfile else ', no O_TMPFILE'}"


# What each way passes of the places at which something gets the target's name.
_NAMED = {
    ("new path", True): {"persist.linked"},
    ("overwrite", True): {"persist.named-beside", "persist.renamed"},
    ("new path", False): {"persist.renamed"},
    ("overwrite", False): {"persist.renamed"},
    ("at return", True): {"commit.linked", "persist.named-beside", "persist.renamed"},
    ("at return", False): {"commit.linked", "persist.renamed"},
}
_LINK_REMOVED = "end.link-removed"
_ALL_NAMED = set().union(*_NAMED.values())


def _of(*protocols: str) -> List[str]:
    return [point for point in FAILPOINTS if point.split(".")[0] in protocols]


SAVES = [
    Case(point, way, tmpfile)
    for (way, tmpfile), named in _NAMED.items()
    for point in _of("begin", "commit", "persist", "end")
    if point not in _ALL_NAMED - named and point != _LINK_REMOVED
]
_ONLY_FOLDERS = {"remove.hidden"}
REMOVALS = [
    Case(point, way)
    for way in ("file", "folder")
    for point in _of("remove")
    if way == "folder" or point not in _ONLY_FOLDERS
]
RESTARTS = [
    Case(point, "all kinds pending", tmpfile)
    for tmpfile in (True, False)
    for point in _of("restart")
]


def cases(of: List[Case]) -> Any:
    """One test for each."""
    return pytest.mark.parametrize("case", of, ids=str)


def at_or_after(point: str, other: str) -> bool:
    """Whether the daemon is at `other`, or past it, when it is at `point`."""
    return FAILPOINTS.index(point) >= FAILPOINTS.index(other)


def make_state(seed: int, numbers: int = 300_000):
    """Something to save, of 4 bytes a number."""
    generator = torch.Generator().manual_seed(seed)
    return {"seed": seed, "weight": torch.randn(numbers, generator=generator), "notes": ["as is"]}


OLD, NEW = make_state(1), make_state(2)
NOW = {"old": digest(OLD), "new": digest(NEW), "none": None}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Holds checkpoints and nothing else."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


@pytest.fixture
def daemon(tmp_path):
    """Makes a daemon, with or without unnamed files."""
    with contextlib.ExitStack() as stack:

        def make(tmpfile: bool = True) -> Daemon:
            wrapper = () if tmpfile else (sys.executable, "-I", "-S", _NO_TMPFILE)
            daemon = Daemon(tmp_path, "--staging-budget", "64MiB", wrapper=wrapper)
            stack.callback(daemon.clean_up)
            return daemon

        yield make


@pytest.fixture
def session():
    """Opens sessions in which a call that breaks is not made again."""
    with contextlib.ExitStack() as stack:

        def connect(daemon: Daemon) -> Session:
            session = Session(daemon.address)
            stack.callback(session.close)
            session.connect()
            return session

        yield connect


def restart(daemon: Daemon, point: str) -> None:
    """Ends it in peace, and starts it again, to die at `point`."""
    assert daemon.stop() == 0
    daemon.start(CKPTD_FAILPOINT=point)


def await_death(daemon: Daemon) -> None:
    """Waits until it has died at its place; the journal is sound then."""
    try:
        assert daemon.process.wait(WAIT_SECONDS) == -signal.SIGKILL, daemon.log.read_text()
    except subprocess.TimeoutExpired:
        pytest.fail(f"did not pass that place: {daemon.log.read_text()}")
    with open_journal(daemon) as journal:
        check_journal(journal)


def save_once(
    session: Session, state: Any, path: Path, at_return: bool = False
) -> Tuple[str, bool]:
    """The name of a save, and whether it was answered that it is accepted; tried once."""
    transport = "grpc" if path.name.startswith("streamed") else "shm"
    caller = Caller(session.address, JOB, WAIT_SECONDS, transport, object())
    attempt = Attempt(
        caller,
        capture(state, str(path)),
        str(path),
        "torch",
        pb.BeginSaveRequest.BLOCK,
        visible=pb.BeginSaveRequest.AT_RETURN if at_return else pb.BeginSaveRequest.WHEN_DURABLE,
    )
    try:
        return attempt.run(session, session.id).name, True
    except SessionLostError as error:
        assert error.save is not None
        return error.save, False


def is_known(daemon: Daemon, save: str) -> bool:
    """Whether the daemon has a save of that name."""
    try:
        daemon.call("GetSave", pb.GetSaveRequest(name=save))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
        return False
    return True


def remove_once(daemon: Daemon, path: Path, wait: bool) -> bool:
    """Whether a removal was answered OK; tried once."""
    request = pb.RemoveCheckpointRequest(parent=f"jobs/{JOB}", path=str(path), wait=wait)
    try:
        daemon.call("RemoveCheckpoint", request)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        return False
    return True


def checkpoints_in(folder: Path) -> dict:
    """The digest of each file, or what is in a folder, but for the daemon's own."""
    digests = FileDigests()
    return {
        entry.name: [(part.name, part.read_bytes()) for part in sorted(entry.iterdir())]
        if entry.is_dir()
        else digests.of(entry)
        for entry in folder.iterdir()
        if not is_temporary(entry.name)
    }


# ---- Saves ---------------------------------------------------------------------------------------


@cases(SAVES)
def test_a_save_dies(case, daemon, session, folder):
    check_a_save_that_dies(case, "mapped.ckpt", daemon, session, folder)


@cases(
    [
        case
        for case in SAVES
        if case.way != "at return" and not at_or_after(case.point, "persist.begin")
    ]
)
def test_a_streamed_save_dies(case, daemon, session, folder):
    check_a_save_that_dies(case, "streamed.ckpt", daemon, session, folder)


def check_a_save_that_dies(case, name, daemon, session, folder):
    """All that must hold of a save over which a daemon died."""
    path = folder / name
    daemon = daemon(case.tmpfile)
    before = None
    if case.way == "overwrite":
        before = NOW["old"]
        save_once(session(daemon), OLD, path)
        daemon.call("Flush", pb.FlushRequest(parent="jobs/-"))
    restart(daemon, case.point)
    at_return = case.way == "at return"
    save, answered = save_once(session(daemon), NEW, path, at_return)
    await_death(daemon)
    accepted = at_or_after(case.point, "commit.journaled")
    renamed = case.way == "overwrite" or not case.tmpfile
    there_from = "persist.renamed" if renamed else "persist.linked"
    if at_return:
        there_from = "commit.linked"
    published = at_or_after(case.point, there_from)
    assert accepted or not answered
    assert checkpoints_in(folder).get(name) == (NOW["new"] if published else before)
    daemon.start()
    assert is_known(daemon, save) == accepted
    after = NOW["new"] if accepted else before
    check_end(daemon, folder, {name: after}, [save] if accepted else [])


def test_a_cancelled_save_dies_without_its_link(daemon, session, folder):
    daemon = daemon()
    path = folder / "a.ckpt"
    save_once(session(daemon), OLD, path)
    daemon.call("Flush", pb.FlushRequest(parent="jobs/-"))
    restart(daemon, _LINK_REMOVED)
    holder = session(daemon)
    holder.call(
        "BeginLoad", pb.BeginLoadRequest(session_id=holder.id, path=str(path)), WAIT_SECONDS
    )
    path.unlink()
    save, answered = save_once(session(daemon), NEW, path, at_return=True)
    assert answered
    assert checkpoints_in(folder) == {"a.ckpt": NOW["new"]}
    with pytest.raises(grpc.RpcError):
        daemon.call("CancelSave", pb.CancelSaveRequest(name=save))
    await_death(daemon)
    assert checkpoints_in(folder) == {}
    daemon.start()
    check_end(daemon, folder, {"a.ckpt": NOW["new"]}, [save])


@cases([case for case in SAVES if case.way == "new path" and case.tmpfile])
def test_a_client_goes_on(case, daemon, folder):
    daemon = daemon()
    restart(daemon, case.point)
    client = daemon.client(job=JOB)
    saves: list = []
    client.flush()  # connects: one that was never there is not waited for
    thread = threading.Thread(target=lambda: saves.append(client.save(NEW, folder / "a.ckpt")))
    thread.start()
    await_death(daemon)
    daemon.start()
    thread.join(WAIT_SECONDS)
    saves[0].result()
    saved = daemon.call("ListSaves", pb.ListSavesRequest(parent=f"jobs/{JOB}")).saves
    durable = [save.name for save in saved if save.state == pb.Save.SUCCEEDED]
    assert durable == [saves[0].name], "was saved twice"
    client.close()
    check_end(daemon, folder, {"a.ckpt": NOW["new"]}, durable)


# ---- Removals ------------------------------------------------------------------------------------


@cases(REMOVALS)
def test_a_removal_dies(case, daemon, session, folder):
    daemon = daemon()
    save, _ = save_once(session(daemon), OLD, folder / "a.ckpt")
    daemon.call("Flush", pb.FlushRequest(parent="jobs/-"))
    if case.way == "folder":
        (folder / "a.ckpt").unlink()
        (folder / "a.ckpt").mkdir()
        for number in range(3):
            (folder / "a.ckpt" / f"{number}.part").write_bytes(bytes(number))
    whole = checkpoints_in(folder)
    restart(daemon, case.point)
    answered = remove_once(daemon, folder / "a.ckpt", wait=True)
    await_death(daemon)
    accepted = at_or_after(case.point, "remove.journaled")
    gone = at_or_after(case.point, "remove.hidden" if case.way == "folder" else "remove.unlinked")
    assert not answered, "was to be told when it is gone, and that is journaled"
    assert checkpoints_in(folder) == ({} if gone else whole)
    daemon.start()
    daemon.call("Flush", pb.FlushRequest(parent="jobs/-"))
    assert checkpoints_in(folder) == ({} if accepted else whole)
    if not accepted:
        assert remove_once(daemon, folder / "a.ckpt", wait=True)
    check_end(daemon, folder, {}, [save])


# ---- Restarts ------------------------------------------------------------------------------------


def leave_all_kinds_pending(
    daemon: Daemon, connect: Callable[[Daemon], Session], folder: Path, point: str
) -> Tuple[List[str], str]:
    """Has a daemon die with a save begun, one queued behind a load, a removal behind that, and one
    STAGING. Returns the names of the accepted saves and of the other."""
    for name in ("written.ckpt", "queued.ckpt", "removed.ckpt"):
        save_once(connect(daemon), OLD, folder / name)
    daemon.call("Flush", pb.FlushRequest(parent="jobs/-"))
    restart(daemon, point)
    session = connect(daemon)
    load = pb.BeginLoadRequest(session_id=session.id, path=str(folder / "queued.ckpt"))
    session.call("BeginLoad", load, WAIT_SECONDS)
    queued, answered = save_once(connect(daemon), NEW, folder / "queued.ckpt")
    assert answered
    assert remove_once(daemon, folder / "removed.ckpt", wait=False)
    staging = pb.BeginSaveRequest(
        session_id=session.id,
        name=f"jobs/{JOB}/saves/never",
        path=str(folder / "never.ckpt"),
        backend="torch",
        object_bytes=100,
    )
    session.call("BeginSave", staging, WAIT_SECONDS)
    written, _ = save_once(connect(daemon), NEW, folder / "written.ckpt")
    await_death(daemon)
    return [queued, written], staging.name


@cases(RESTARTS)
def test_a_restart_dies(case, daemon, session, folder):
    daemon = daemon(case.tmpfile)
    beside = "persist.named-beside" if case.tmpfile else "persist.written"
    accepted, staging = leave_all_kinds_pending(daemon, session, folder, beside)
    assert any(map(is_temporary, os.listdir(folder))), "nothing to remove"
    daemon.launch(CKPTD_FAILPOINT=case.point)
    await_death(daemon)
    found = checkpoints_in(folder)
    assert found.keys() <= {"written.ckpt", "queued.ckpt", "removed.ckpt"}
    assert {found["written.ckpt"], found["queued.ckpt"]} <= {NOW["old"], NOW["new"]}
    if found.get("removed.ckpt") != NOW["old"]:
        # What was accepted before the removal; "written" came after it.
        assert found["queued.ckpt"] == NOW["new"], "outrun"
    daemon.start()
    assert not is_known(daemon, staging)
    check_end(daemon, folder, {"written.ckpt": NOW["new"], "queued.ckpt": NOW["new"]}, accepted)


# ---- The list ------------------------------------------------------------------------------------


def test_each_place_has_its_case_and_its_line():
    assert set(FAILPOINTS) == {case.point for case in SAVES + REMOVALS + RESTARTS} | {_LINK_REMOVED}
    matrix = (REPO / "docs" / "crash-matrix.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z]+\.[a-z-]+)` \|", matrix, re.MULTILINE) == FAILPOINTS


def test_a_place_that_is_none_is_refused(daemon):
    daemon = daemon()
    assert daemon.stop() == 0
    daemon.launch(CKPTD_FAILPOINT="persist.nowhere")
    assert daemon.process.wait(WAIT_SECONDS) == 1
    assert "persist.nowhere" in daemon.log.read_text()
