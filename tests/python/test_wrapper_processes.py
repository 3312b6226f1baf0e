"""Where a user's own CheckpointIO runs: hosts that die, are cancelled, and cannot be started."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import ckptd
import own_io
import psutil
import pytest
import torch
from ckptd.lightning import SidecarCheckpointIO
from harness import CKPTCTL, REPO, wait_until
from mounts import another_container, needs_root
from own_io import Mine


PLACES = ["here", pytest.param("another container", marks=needs_root)]


@pytest.fixture
def wrapper(client):
    return SidecarCheckpointIO(Mine(), client=client)


@pytest.fixture
def make_placed(make_daemon):
    """Makes a daemon that starts hosts itself, or one that cannot see this interpreter."""

    def make(place, own_memory=False):
        if place == "here":
            return make_daemon()
        return make_daemon(wrapper=another_container(sys.executable, own_memory))

    return make


def children(process):
    """The processes that one has started, by now."""
    return psutil.Process(process.pid).children()


def has_ended(process):
    """Whether a process is dead, if not reaped."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_the_end_of_its_process_is_that_saves_error(wrapper, tmp_path):
    wrapper.save_checkpoint({"exit": True}, tmp_path / "a.ckpt")
    with pytest.raises(ckptd.SaveError, match="exit code 3") as info:
        wrapper.client.flush()
    assert info.value.reason == "HOST_DIED"
    wrapper.save_checkpoint({"n": 1}, tmp_path / "b.ckpt")
    wrapper.teardown()
    assert (tmp_path / "b.ckpt").exists()


def test_the_next_process_is_there_before_it_is_needed(make_daemon, tmp_path):
    daemon = make_daemon()
    wrapper = SidecarCheckpointIO(Mine(), client=daemon.client())
    wrapper.save_checkpoint({"exit": True}, tmp_path / "a.ckpt")
    with pytest.raises(ckptd.SaveError, match="exit code 3"):
        wrapper.client.flush()
    (supervisor,) = children(daemon.process)
    (worker,) = wait_until(supervisor.children, "the next worker")
    wrapper.save_checkpoint({"by": 0}, tmp_path / "b.ckpt")
    assert wrapper.load_checkpoint(tmp_path / "b.ckpt")["by"] == worker.pid
    wrapper.teardown()


def test_a_host_that_is_killed_is_started_again(make_daemon, tmp_path):
    daemon = make_daemon()
    wrapper = SidecarCheckpointIO(Mine(), client=daemon.client())
    wrapper.save_checkpoint({"n": 1}, tmp_path / "a.ckpt")
    wrapper.client.flush()
    for host in children(daemon.process):
        host.send_signal(signal.SIGKILL)
    # Until the daemon has seen it, a task may still go to it, and dies with it.
    wait_until(lambda: "ended with signal 9" in daemon.log.read_text(), "the host's end")
    wrapper.save_checkpoint({"n": 2}, tmp_path / "b.ckpt")
    wrapper.teardown()
    assert (tmp_path / "b.ckpt").exists()
    assert "writing b.ckpt" in daemon.log.read_text()
    # Nobody needs it any more.
    host = psutil.Process(daemon.process.pid)
    wait_until(lambda: not host.children(recursive=True), "the end of the host")


def test_cancelled_where_it_hangs(daemon, client, tmp_path):
    wrapper = SidecarCheckpointIO(Mine(until=tmp_path / "never"), client=client)
    wrapper.save_checkpoint({"n": 1}, tmp_path / "a.ckpt")
    (save,) = client.pending()
    wait_until(lambda: save.done() or save.state == "PERSISTING", "the save to be begun")
    job, name = save.name.split("/")[1::2]
    command = [CKPTCTL, "--address", daemon.address, "cancel", f"{job}/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ckptd.SaveError, match="cancel") as info:
        client.flush()
    assert info.value.reason == "CANCELLED_BY_REQUEST"
    wrapper.save_checkpoint({"n": 2, "until": ""}, tmp_path / "b.ckpt")
    wrapper.teardown()
    assert [one for one in os.listdir(tmp_path) if one.endswith(".ckpt")] == ["b.ckpt"]


@needs_root
def test_daemon_that_shares_neither_programs_nor_memory(make_placed, tmp_path):
    daemon = make_placed("another container", own_memory=True)
    wrapper, path = SidecarCheckpointIO(Mine(), client=daemon.client()), tmp_path / "a.ckpt"
    state = {"w": torch.arange(1_000_000), "by": 0}
    wrapper.save_checkpoint(state, path)
    assert not daemon.pool.exists()  # here
    state["w"].zero_()
    loaded = wrapper.load_checkpoint(path)
    assert torch.equal(loaded["w"], torch.arange(1_000_000))
    worker = psutil.Process(loaded["by"])
    assert not children(daemon.process)
    # It dies, and another is started; until the daemon knows, a task may still go to it.
    worker.parent().kill()
    wait_until(lambda: "its stream has ended" in daemon.log.read_text(), "the end of its stream")
    wrapper.save_checkpoint({"by": 0}, tmp_path / "b.ckpt")
    wrapper.client.flush()
    supervisor = psutil.Process(wrapper.load_checkpoint(tmp_path / "b.ckpt")["by"]).parent()
    wrapper.save_checkpoint({"raise": True}, tmp_path / "c.ckpt")
    wrapper.remove_checkpoint(path)
    with pytest.raises(ckptd.SaveError, match="no luck"):
        wrapper.teardown()
    # As its job has a save that failed.
    assert path.exists()
    wait_until(lambda: has_ended(supervisor), "the end of the host, which nobody needs any more")


@needs_root
def test_killed_with_saves_in_the_queue(make_placed, tmp_path):
    daemon = make_placed("another container")
    wrapper = SidecarCheckpointIO(Mine(until=tmp_path / "go"), client=daemon.client())
    for name in ("a.ckpt", "b.ckpt"):
        wrapper.save_checkpoint({"by": 0}, tmp_path / name)
    lost, queued = sorted(wrapper.client.pending(), key=lambda save: save.path)
    wait_until(lambda: "begins a.ckpt" in daemon.log.read_text(), "the save to begin", 60)
    (killed,) = re.findall(r"process (\d+) attached itself", daemon.log.read_text())
    os.kill(int(killed), signal.SIGKILL)
    with pytest.raises(ckptd.SaveError) as info:
        lost.result()
    assert info.value.reason == "HOST_DIED"
    (tmp_path / "go").touch()
    queued.result()  # asks for nothing but the save's state
    supervisor = psutil.Process(torch.load(queued.path)["by"]).parent()
    assert supervisor.pid != int(killed)
    wrapper.client.close()
    wait_until(lambda: has_ended(supervisor), "the end of the host, which nobody needs any more")


@needs_root
def test_needed_again_while_it_ends(make_placed, tmp_path):
    daemon = make_placed("another container")
    wrapper = SidecarCheckpointIO(Mine(ends=tmp_path / "go"), client=daemon.client())
    wrapper.save_checkpoint({"n": 1}, tmp_path / "a.ckpt")
    wrapper.client.flush()
    wrapper.client.close()
    wait_until(lambda: ": closed" in daemon.log.read_text(), "the daemon to let go of the host")
    wrapper.save_checkpoint({"n": 2}, tmp_path / "b.ckpt")
    (save,) = wrapper.client.pending()
    (tmp_path / "go").touch()
    save.result()
    wrapper.teardown()


class Rank:
    """A process that shares `wrapper`, and so its host, with others."""

    def __init__(self, wrapper):
        self._forked = []
        self._pool = multiprocessing.get_context("fork").Pool(1, self._begin, (wrapper,))

    def save(self, path):
        """Saves; returns the host processes that it has started by then."""
        return self._pool.apply(self._save, (path,))

    def fork(self):
        """Has it fork a process, as a DataLoader does, that stays."""
        self._forked.append(psutil.Process(self._pool.apply(self._fork)))

    def end(self):
        """Ends it, and what it has forked."""
        self._pool.terminate()
        self._pool.join()
        for process in self._forked:
            process.kill()

    # In the process:

    @staticmethod
    def _begin(wrapper):
        class Noted(subprocess.Popen):
            def __init__(self, *arguments, **named):
                super().__init__(*arguments, **named)
                if "CKPTD_HOST_ID" in (named.get("env") or ()):
                    Rank.started.append(self.pid)

        Rank.wrapper, Rank.started, subprocess.Popen = wrapper, [], Noted

    @staticmethod
    def _save(path):
        Rank.wrapper.save_checkpoint({"by": 0}, path)
        Rank.wrapper.client.flush()
        return Rank.started

    @staticmethod
    def _fork():
        child = os.fork()
        if child == 0:
            signal.pause()
        return child


@pytest.fixture
def ranks(make_placed):
    """A daemon, and two ranks that share a host which it cannot start."""
    daemon = make_placed("another container")
    wrapper = SidecarCheckpointIO(Mine(), client=daemon.client())
    made = [Rank(wrapper) for _ in range(2)]
    yield daemon, *made
    for rank in made:
        rank.end()


def host_of(path):
    """The host process that has written a checkpoint."""
    return psutil.Process(torch.load(path)["by"]).parent()


@needs_root
def test_ranks_that_share_a_host_start_one(ranks, tmp_path):
    daemon, first, second = ranks
    a, b, c, d, e = (tmp_path / f"{name}.ckpt" for name in "abcde")
    (host,) = first.save(a)
    for path in (b, c):
        started = second.save(path)
        wait_until(lambda: not any(map(psutil.pid_exists, started)), "the end of one not needed")
    assert started == []
    assert host_of(c).pid == host
    # Whoever is left sees to it, and what it has forked does not prevent it.
    second.fork()
    first.end()
    for n, path in enumerate((d, e), 1):
        psutil.Process(host).kill()
        gone = "its stream has ended"
        wait_until(lambda: daemon.log.read_text().count(gone) == n, "the end of its stream")
        host = second.save(path)[-1]
        assert host_of(path).pid == host


@pytest.mark.parametrize("place", PLACES)
def test_outlives_the_trainer_that_defines_it(make_placed, tmp_path, place):
    daemon = make_placed(place)
    path, go = tmp_path / "a.ckpt", tmp_path / "go"
    program = Path(own_io.__file__).read_text().replace("from __future__ import annotations", "")
    program += f"""
import ckptd, signal
from ckptd.lightning import SidecarCheckpointIO

client = ckptd.Client(address={daemon.address!r}, on_unavailable="raise")
io = SidecarCheckpointIO(Mine(until={str(go)!r}), client=client)
io.save_checkpoint({{"w": torch.ones(3)}}, {str(path)!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    script = tmp_path / "train.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(REPO / "client" / "python")}
    # Whoever reads what it prints sees the end of that with it.
    done = subprocess.run(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    go.touch()
    wait_until(lambda: daemon.status().queue.succeeded_count, "its end")
    assert torch.equal(torch.load(path)["w"], torch.ones(3))


@pytest.mark.parametrize("place", PLACES)
def test_another_daemon_goes_on_with_it(make_placed, tmp_path, place):
    daemon = make_placed(place)
    go, path = tmp_path / "go", tmp_path / "a.ckpt"
    wrapper = SidecarCheckpointIO(Mine(until=go), client=daemon.client())
    wrapper.save_checkpoint({"n": 7}, path)
    daemon.kill()
    daemon.start()
    go.touch()
    wrapper.teardown()
    assert torch.load(path)["n"] == 7
