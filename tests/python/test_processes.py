"""Processes that fork, die, start daemons and find none."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import ckptd
import pytest
import torch
from harness import BUILD, WAIT_SECONDS, wait_until
from test_failures import hold

# Begins a save through the client's own parts, copies half of it, says so and waits to be killed.
DIES_IN_THE_COPY = """
    import ckptd, ctypes, os, signal, sys, torch
    from ckptd import transfer
    client = ckptd.Client(transport="shm", on_unavailable="raise")
    def half(caller, session, captured, begun, deadline):
        with session.mappings.hold(begun.image) as mapping:
            record = captured.records[0]
            to = mapping.address + begun.tensor_offsets[0]
            ctypes.memmove(to, record.storage.data_ptr(), record.size_bytes // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "copy":
        transfer._fill = half
    client.save({"x": torch.ones(4_000_000)}, sys.argv[1])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def in_child(work) -> int:
    """Runs `work` in a forked child; returns its exit code, 1 where it raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__)
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not return into pytest
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    ended = []

    def reap():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ended.append(os.waitstatus_to_exitcode(status))
        return done

    try:
        wait_until(reap, "the forked child to end")
    except AssertionError:
        os.kill(pid, signal.SIGUSR1)  # to show where it is
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return ended[0]


class TestDeath:
    def test_killed_during_the_copy(self, daemon, client, tmp_path, run_python):
        client.save({"x": 1}, tmp_path / "old.ckpt").result()
        before = daemon.status().pool
        for path in (tmp_path / "new.ckpt", tmp_path / "old.ckpt"):
            result = run_python(DIES_IN_THE_COPY, path, "copy", check=False)
            assert result.returncode == -signal.SIGKILL, result.stderr

        def in_use():
            pool = daemon.status().pool
            return pool.used_bytes - pool.free_bytes

        # The save is gone before its memory is: an image is unmapped outside the queue's lock.
        wait_until(lambda: daemon.status().queue.staging_count == 0, "the saves to be dropped")
        wait_until(
            lambda: in_use() <= before.used_bytes - before.free_bytes, "the image to be reclaimed"
        )
        client.flush()
        assert os.listdir(tmp_path) == ["old.ckpt"]
        assert client.load(tmp_path / "old.ckpt") == {"x": 1}
        # What is left in the pool is counted, warm and free for the next save.
        pool = daemon.status().pool
        files = sum(os.path.getsize(daemon.pool / name) > 0 for name in os.listdir(daemon.pool))
        assert files <= pool.image_count + 1

    def test_killed_right_after_save_returned(self, client, tmp_path, run_python):
        result = run_python(DIES_IN_THE_COPY, tmp_path / "a.ckpt", "later", check=False)
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert torch.equal(client.load(tmp_path / "a.ckpt")["x"], torch.ones(4_000_000))
        assert os.listdir(tmp_path) == ["a.ckpt"]


class TestFork:
    def test_parent_and_child_save_alike(self, client, tmp_path):
        state = {"x": torch.ones(2_000_000)}
        child_state = {"x": torch.full((2_000_000,), 2.0)}  # torch's own threads survive no fork
        client.save(state, tmp_path / "before.ckpt")

        def child():
            client.save(child_state, tmp_path / "child.ckpt").result()
            assert client.load(tmp_path / "before.ckpt")["x"][0] == 1
            assert in_child(lambda: client.save({"x": 3}, tmp_path / "grandchild.ckpt")) == 0

        for _ in range(3):
            assert in_child(child) == 0
            client.save(state, tmp_path / "parent.ckpt").result()
        assert client.load(tmp_path / "child.ckpt")["x"].unique().tolist() == [2]
        assert client.load(tmp_path / "grandchild.ckpt") == {"x": 3}

    def test_child_reports_only_its_own_failures(self, client, tmp_path):
        save = client.save({"x": torch.ones(10)}, tmp_path / "a.ckpt")

        def child():
            assert ckptd.client.session_for(client.address).ledger.pending() == []
            save.result()  # but it may ask
            client.flush()

        assert in_child(child) == 0
        save.result()

    def test_images_of_the_parent_are_not_mapped_in_the_child(self, client, tmp_path):
        client.save({"x": torch.ones(2_000_000)}, tmp_path / "a.ckpt").result()

        def mapped():
            with open("/proc/self/maps", encoding="utf-8") as maps:
                return [line for line in maps if "/dev/shm/ckptd-test" in line]

        def child():
            assert not mapped()

        assert mapped()
        assert in_child(child) == 0

    def test_fork_while_another_thread_waits_in_a_call(self, client, daemon, tmp_path):
        path = tmp_path / "a.ckpt"
        client.save({"x": 1}, path).result()
        session, load = hold(daemon, path)
        waiting = client.save({"x": 2}, path)
        thread = threading.Thread(target=waiting.result)
        thread.start()
        wait_until(lambda: daemon.status().queue.queued_count, "the save to be queued")
        assert in_child(lambda: client.save({"x": 3}, tmp_path / "b.ckpt").result()) == 0
        session.call("EndLoad", load, WAIT_SECONDS)
        thread.join(WAIT_SECONDS)
        assert waiting.state == "SUCCEEDED"
        assert client.load(tmp_path / "b.ckpt") == {"x": 3}

    def test_helper_of_a_child_passes_errors_and_ends_with_it(self, client, tmp_path):
        client.save({"x": 1}, tmp_path / "a.ckpt")
        read, write = os.pipe()

        def child():
            big = {"x": torch.ones(20_000)}
            streaming = ckptd.Client(client.address, job="relay", transport="grpc")
            for other in (client, streaming):
                other.save(big, tmp_path / "b.ckpt").result()
                assert torch.equal(other.load(tmp_path / "b.ckpt")["x"], big["x"])
                with pytest.raises(FileNotFoundError, match="Checkpoint file not found"):
                    other.load(tmp_path / "none.ckpt")
                with pytest.raises(ckptd.SaveError) as caught:
                    other.save(big, tmp_path)
                assert caught.value.reason == "PATH_IS_DIRECTORY"
            helper = ckptd.client.session_for(client.address)._channel._process.pid
            os.write(write, str(helper).encode())
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(child) == -signal.SIGKILL
        helper = int(os.read(read, 20))
        wait_until(lambda: not os.path.exists(f"/proc/{helper}"), "the helper to end")

    def test_multiprocessing_with_fork(self, client, tmp_path):
        import multiprocessing

        client.save({"x": 1}, tmp_path / "a.ckpt")
        context = multiprocessing.get_context("fork")
        worker = context.Process(target=client.save, args=({"x": 2}, tmp_path / "b.ckpt"))
        worker.start()
        worker.join(WAIT_SECONDS)
        assert worker.exitcode == 0
        assert client.load(tmp_path / "b.ckpt") == {"x": 2}


class TestRestart:
    def test_client_goes_on_with_a_new_daemon(self, make_daemon, tmp_path):
        daemon = make_daemon()
        client = daemon.client()
        state = {"x": torch.ones(1_000_000)}
        client.save(state, tmp_path / "a.ckpt").result()
        for end in (daemon.kill, daemon.stop):
            end()
            daemon.start()
            client.save(state, tmp_path / "b.ckpt").result()
            assert torch.equal(client.load(tmp_path / "b.ckpt")["x"], state["x"])
            client.flush()

    def test_accepted_saves_survive_a_killed_daemon(self, make_daemon, tmp_path):
        daemon = make_daemon()
        client = daemon.client()
        state = {"x": torch.arange(20_000_000)}
        saves = [client.save(state, tmp_path / f"{i}.ckpt") for i in range(2)]
        daemon.kill()
        state["x"].zero_()
        daemon.start()
        client.flush()
        for i, save in enumerate(saves):
            save.result()
            assert save.state == "SUCCEEDED"
            loaded = torch.load(tmp_path / f"{i}.ckpt")["x"]
            assert torch.equal(loaded, torch.arange(20_000_000))

    def test_save_blocks_until_the_daemon_is_back(self, make_daemon, tmp_path):
        daemon = make_daemon()
        client = daemon.client()
        client.save({"x": 0}, tmp_path / "a.ckpt").result()
        daemon.stop()
        done = []
        thread = threading.Thread(
            target=lambda: done.append(client.save({"x": 1}, tmp_path / "a.ckpt").result())
        )
        thread.start()
        with pytest.raises(ckptd.DaemonUnavailableError):  # one with less patience
            daemon.client(timeout=0.2).save({"x": 2}, tmp_path / "b.ckpt")
        assert not done
        daemon.start()
        thread.join(WAIT_SECONDS)
        assert done == [None]
        assert torch.load(tmp_path / "a.ckpt") == {"x": 1}

    def test_upgrade_under_load_loses_nothing(self, make_daemon, tmp_path):
        daemon = make_daemon()
        clients = [daemon.client(transport=transport) for transport in ("shm", "grpc")]
        saved = {}
        stop = threading.Event()

        def work(index, client):
            step = 0
            while not stop.is_set() or step == 0:
                path = tmp_path / f"{index}-{step}.ckpt"
                saved[path] = (client.save({"x": torch.full((200_000,), step)}, path), step)
                step += 1

        threads = [threading.Thread(target=work, args=item) for item in enumerate(clients)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            count = len(saved)
            wait_until(lambda c=count: len(saved) >= c + 10, "saves to be made")
            assert daemon.stop() == 0
            daemon.start()
        stop.set()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        for path, (save, step) in saved.items():
            save.result(WAIT_SECONDS)
            assert torch.equal(torch.load(path)["x"], torch.full((200_000,), step))

    def test_saves_that_no_daemon_knows_any_more_are_reported_once(self, make_daemon, tmp_path):
        daemon = make_daemon()
        client = daemon.client()
        save = client.save({"x": 1}, tmp_path / "a.ckpt")
        session = ckptd.client.session_for(daemon.address)
        wait_until((tmp_path / "a.ckpt").exists, "the save")
        daemon.kill()  # before the client has heard that the save is durable
        shutil.rmtree(daemon.state)
        shutil.rmtree(daemon.pool)
        daemon.start()
        client.save({"x": 2}, tmp_path / "b.ckpt")
        with pytest.raises(ckptd.SaveError, match="a.ckpt: the daemon ended before it told"):
            client.raise_failed()
        client.raise_failed()
        assert session.ledger.pending() == [] or session.ledger.pending()[0].path.endswith("b.ckpt")
        with pytest.raises(ckptd.SaveError):
            save.result()

    def test_without_a_daemon_flush_reports_what_was_pending(self, make_daemon, tmp_path):
        daemon = make_daemon()
        client = daemon.client(timeout=1)
        client.flush()
        client.save({"x": 1}, tmp_path / "a.ckpt")
        daemon.kill()
        with pytest.raises(ckptd.SaveError, match="a.ckpt: the daemon ended before it told"):
            client.flush()
        client.flush()


class TestUnavailable:
    ADDRESS = "unix:{}/run/ckptd.sock"

    @pytest.fixture
    def pool(self, monkeypatch):
        """The pool of the daemons that a test has the client start."""
        folder = tempfile.mkdtemp(prefix="ckptd-test-", dir="/dev/shm")
        monkeypatch.setenv("CKPTD_BIN", str(BUILD / "bin" / "ckptd"))
        monkeypatch.setenv("CKPTD_POOL_DIR", f"{folder}/pool")
        monkeypatch.setenv("CKPTD_STATE_DIR", f"{folder}/state")
        monkeypatch.setenv("CKPTD_STAGING_BUDGET", "64MiB")
        yield f"{folder}/pool"
        shutil.rmtree(folder)

    def test_raise(self, tmp_path):
        address = self.ADDRESS.format(tmp_path)
        client = ckptd.Client(address=address, on_unavailable="raise")
        for call in (
            lambda: client.save({}, tmp_path / "a"),
            lambda: client.load(tmp_path / "a"),
            lambda: client.remove(tmp_path / "a"),
            lambda: client.reserve(10),
        ):
            with pytest.raises(ckptd.DaemonUnavailableError) as caught:
                call()
            assert str(caught.value).startswith(f"{address}: no daemon listens here")
            assert isinstance(caught.value, (ckptd.SaveError, ConnectionError))
        assert os.listdir(tmp_path) == []

    def test_fallback_is_torch_save_with_one_warning(self, tmp_path):
        client = ckptd.Client(
            address=self.ADDRESS.format(tmp_path), on_unavailable="fallback", timeout=5
        )
        path = tmp_path / "sub" / "a.ckpt"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for value in (1, 2):
                save = client.save({"x": torch.full((3,), value)}, path)
                save.result()
                assert save.done() and save.state == "SUCCEEDED"
        assert [w.category for w in caught] == [RuntimeWarning]
        assert "written by torch.save" in str(caught[0].message)
        assert caught[0].filename == __file__
        assert client.load(path)["x"].tolist() == [2, 2, 2]
        assert torch.load(path)["x"].tolist() == [2, 2, 2]
        assert os.listdir(path.parent) == ["a.ckpt"]
        client.flush()
        with pytest.raises(TypeError):  # a generator: nothing is left of the attempt
            ckptd.local.save((i for i in range(2)), str(tmp_path / "sub" / "b.ckpt"))
        client.remove(path)
        client.remove(path)
        assert os.listdir(path.parent) == []
        with pytest.raises(FileNotFoundError, match="Checkpoint file not found"):
            client.load(path)

    @pytest.mark.usefixtures("pool")
    def test_start(self, tmp_path):
        address = self.ADDRESS.format(tmp_path)
        clients = [ckptd.Client(address=address) for _ in range(3)]
        errors = []

        def save(index):
            try:
                clients[index].save({"x": index}, tmp_path / f"{index}.ckpt").result()
            except Exception as error:  # noqa: BLE001 - shown by the main thread
                errors.append(error)

        threads = [threading.Thread(target=save, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert [clients[0].load(tmp_path / f"{i}.ckpt") for i in range(3)] == [
            {"x": 0},
            {"x": 1},
            {"x": 2},
        ]
        assert os.stat(tmp_path / "run").st_mode & 0o777 == 0o700
        assert (tmp_path / "run" / "ckptd.log").exists()
        mine = [
            child
            for child in ckptd.launch._started
            if str(tmp_path) in " ".join(map(str, child.args))
        ]
        # The others may not have found out yet.
        wait_until(lambda: sum(child.poll() is None for child in mine) == 1, "one daemon to win")
        (winner,) = [child for child in mine if child.poll() is None]
        assert os.getsid(winner.pid) == winner.pid
        winner.terminate()
        assert winner.wait(WAIT_SECONDS) == 0

    @pytest.mark.usefixtures("pool")
    def test_many_processes_start_one_daemon(self, tmp_path):
        address = self.ADDRESS.format(tmp_path)
        spawn = [str(BUILD / "bin" / "ckptd")]
        (tmp_path / "run").mkdir(mode=0o700)
        racers = [
            subprocess.Popen([*spawn, "--socket", str(tmp_path / "run" / "ckptd.sock")])
            for _ in range(3)
        ]
        client = ckptd.Client(address=address)
        client.save({"x": 1}, tmp_path / "a.ckpt").result()
        wait_until(lambda: sum(r.poll() is not None for r in racers) >= 2, "the losers to end")
        assert all(r.returncode in (None, 1) for r in racers)
        for racer in racers:
            if racer.poll() is None:
                racer.terminate()
                racer.wait(WAIT_SECONDS)
        for child in ckptd.launch._started:
            if str(tmp_path) in " ".join(map(str, child.args)) and child.poll() is None:
                child.terminate()
                child.wait(WAIT_SECONDS)

    def test_start_that_fails_shows_the_log(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ckptd.launch, "_LOSER_PATIENCE", 0.1)
        binary = tmp_path / "ckptd"
        binary.write_text("#!/bin/sh\necho 'ckptd: the moon is in the wrong phase' >&2\nexit 1\n")
        binary.chmod(0o755)
        monkeypatch.setenv("CKPTD_BIN", str(binary))
        client = ckptd.Client(address=self.ADDRESS.format(tmp_path))
        with pytest.raises(ckptd.DaemonUnavailableError, match="wrong phase") as caught:
            client.save({}, tmp_path / "a.ckpt")
        assert "ended with code 1" in str(caught.value)
        monkeypatch.setenv("CKPTD_BIN", str(tmp_path / "absent"))
        with pytest.raises(ckptd.DaemonUnavailableError, match="could not be started"):
            client.save({}, tmp_path / "a.ckpt")

    def test_start_needs_a_unix_socket(self, tmp_path):
        with pytest.raises(ckptd.DaemonUnavailableError, match="give a unix:PATH address"):
            ckptd.Client(address="127.0.0.1:1", timeout=2).save({}, tmp_path / "a.ckpt")
