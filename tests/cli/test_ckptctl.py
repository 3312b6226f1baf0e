"""ckptctl as people and programs run it: its output, its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess

import pytest

A = "jobs/job/saves/a"


@pytest.fixture
def saved(trainer, tmp_path):
    """A save that has ended: its path."""
    path = tmp_path / "a.pt"
    trainer.wait(trainer.save(A, path))
    return path


@pytest.fixture
def queued(trainer, tmp_path, saved):
    """A save that waits, named jobs/job/saves/b, and what lets it go on."""
    load = trainer.hold(saved)
    trainer.save("jobs/job/saves/b", saved)
    return lambda: trainer.release(load)


def sentence(result: subprocess.CompletedProcess) -> str:
    """The one sentence on stderr."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("ckptctl: ")
    return lines[0]


# ---- status, list, get


def test_status(ckptctl, saved):
    text = ckptctl("status").stdout
    assert re.search(r"^ckptd \d+\.\d+\.\d+ at unix:", text)
    assert re.search(r"^Staging .* of 64 MiB", text, re.M)
    assert re.search(r"^Done +1 durable", text, re.M)
    status = json.loads(ckptctl("status", "--output", "json").stdout)
    assert status["queue"]["succeeded_count"] == "1"
    assert status["queue"]["failed_count"] == "0"
    assert status["backends"] == ["python", "safetensors", "torch", "xla", "xla-xser"]
    assert [backend["name"] for backend in status["backend_details"]] == status["backends"]
    assert status["refused_plugins"] == []


def test_list_as_table(ckptctl, saved, queued):
    result = ckptctl("list")
    assert result.returncode == 0
    header, newer, older = result.stdout.splitlines()
    assert header.split() == ["SAVE", "STATE", "DONE", "SIZE", "AGE", "PATH"]
    assert newer.split()[:3] == ["job/b", "queued", "-"]
    assert older.split()[:3] == ["job/a", "succeeded", "100%"]
    column = header.index("PATH")
    assert newer[column:] == older[column:] == str(saved)


def test_list_without_saves(ckptctl):
    assert ckptctl("list").stdout == "no saves\n"
    assert json.loads(ckptctl("list", "-o", "json").stdout)["saves"] == []


def test_list_filters(ckptctl, trainer, tmp_path, saved, queued):
    trainer.wait(trainer.save("jobs/other/saves/c", tmp_path / "c.pt"))

    def names(*arguments):
        saves = json.loads(ckptctl("list", "-o", "json", *arguments).stdout)["saves"]
        return [save["name"] for save in saves]

    assert names() == ["jobs/other/saves/c", "jobs/job/saves/b", A]
    assert names("--state", "queued,persisting") == ["jobs/job/saves/b"]
    assert names("--state", "SUCCEEDED", "--job", "job") == [A]
    assert names("--job", "jobs/other") == ["jobs/other/saves/c"]
    assert names("--path", tmp_path / "c.pt") == ["jobs/other/saves/c"]
    assert names("--job", "nobody") == []


def test_list_pages(ckptctl, trainer, tmp_path):
    for i in range(5):
        trainer.wait(trainer.save(f"jobs/job/saves/{i}", tmp_path / "x.pt"))
    page = ckptctl("list", "--page-size", 2).stdout
    assert page.count("job/") == 2
    token = re.search(r"--page-token (\S+), or --all", page)[1]
    assert ckptctl("list", "--page-size", 2, "--page-token", token).stdout.count("job/") == 2
    assert ckptctl("list", "--page-size", 2, "--all").stdout.count("job/") == 5
    everything = json.loads(ckptctl("list", "--all", "-o", "json").stdout)
    assert len(everything["saves"]) == 5
    assert everything["next_page_token"] == ""


@pytest.mark.parametrize("name", ["job/a", A])
def test_get(ckptctl, saved, name):
    text = ckptctl("get", name).stdout
    assert re.search(r"^State +succeeded$", text, re.M)
    assert re.search(rf"^Path +{saved}$", text, re.M)
    assert re.search(r"^Client +host:1 trainer$", text, re.M)
    save = json.loads(ckptctl("get", name, "-o", "json").stdout)
    assert (save["name"], save["state"], save["path"]) == (A, "SUCCEEDED", str(saved))
    assert int(save["total_bytes"]) == saved.stat().st_size


def test_shows_control_characters_as_text(ckptctl, trainer, tmp_path):
    trainer.wait(trainer.save(A, tmp_path / "evil\x1b[2J\nname"))
    for command in (["list"], ["get", "job/a"], ["watch", "job/a"]):
        assert "evil\\x1b[2J\\x0aname" in ckptctl(*command).stdout


# ---- cancel, flush


def test_cancel(ckptctl, trainer, queued, saved):
    before = saved.read_bytes()
    result = ckptctl("cancel", "job/b")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("job/b: ")
    queued()
    trainer.wait("jobs/job/saves/b")
    save = json.loads(ckptctl("get", "job/b", "-o", "json").stdout)
    assert save["state"] == "CANCELLED"
    assert save["error"]["details"][0]["reason"] == "CANCELLED_BY_REQUEST"
    assert re.search(r"^Error +\S", ckptctl("get", "job/b").stdout, re.M)
    assert saved.read_bytes() == before


def test_cancel_of_a_save_that_has_ended(ckptctl, saved):
    result = ckptctl("cancel", "job/a")
    assert result.returncode == 1
    assert "has ended: succeeded" in sentence(result)


@pytest.mark.parametrize("command", ["get", "cancel", "watch"])
def test_unknown_save(ckptctl, command):
    result = ckptctl(command, "job/none")
    assert result.returncode == 1
    assert "jobs/job/saves/none" in sentence(result)
    assert result.stdout == ""


def test_flush(ckptctl, queued):
    result = ckptctl("flush", "--timeout", "100ms")
    assert result.returncode == 1
    assert re.search("not done yet|--timeout", sentence(result))
    assert ckptctl("flush", "--job", "other", "--timeout", "5s").returncode == 0
    queued()
    result = ckptctl("flush")
    assert (result.returncode, result.stdout) == (0, "everything accepted so far is durable\n")


def test_flush_names_what_failed(ckptctl, trainer, queued):
    ckptctl("cancel", "job/b")
    queued()
    result = ckptctl("flush")
    assert result.returncode == 1
    assert "job/b to " in result.stdout
    assert "1 saves and 0 removals have failed" in sentence(result)


# ---- watch


def test_watch_one_save(start_ckptctl, queued):
    watch = start_ckptctl("watch", "job/b")
    watch.read_until("queued")
    queued()
    lines = watch.read_until("succeeded")
    assert "\x1b" not in lines and "\r" not in lines
    assert watch.end() == 0


def test_watch_ends_with_the_error_of_the_save(ckptctl, start_ckptctl, queued):
    watch = start_ckptctl("watch", "job/b")
    watch.read_until("queued")
    ckptctl("cancel", "job/b")
    queued()
    watch.read_until("cancelled")
    assert watch.end() == 1
    assert "jobs/job/saves/b to " in watch.process.stderr.read()


def test_watch_as_json(start_ckptctl, queued):
    watch = start_ckptctl("watch", "job/b", "--output", "json")
    first = json.loads(watch.read_until("QUEUED"))
    assert (first["name"], first["state"]) == ("jobs/job/saves/b", "QUEUED")
    queued()
    states = [json.loads(line)["state"] for line in watch.process.stdout]
    assert states[-1] == "SUCCEEDED"
    assert watch.end() == 0


def test_watch_all_until_interrupted(start_ckptctl, trainer, tmp_path, queued):
    watch = start_ckptctl("watch")
    assert "job/a" not in watch.read_until("job/b  queued"), "that one had ended before"
    trainer.save("jobs/new/saves/c", tmp_path / "c.pt")
    watch.read_until("new/c  succeeded")
    watch.process.send_signal(signal.SIGINT)
    assert watch.end() == 0
    assert watch.process.stderr.read() == ""


def test_interrupted_watch_of_one_save_says_that_it_goes_on(start_ckptctl, queued):
    watch = start_ckptctl("watch", "job/b")
    watch.read_until("queued")
    watch.process.send_signal(signal.SIGINT)
    assert watch.end() == 1
    assert "it goes on" in watch.process.stderr.read()


def test_watch_draws_bars_on_a_terminal(start_ckptctl, queued):
    terminal, end = pty.openpty()
    watch = start_ckptctl("watch", "job/b", stdout=end)
    os.close(end)
    shown = b""
    while b"queued" not in shown:
        shown += os.read(terminal, 4096)
    assert re.search(rb"\[\.{24}\] +0%  queued", shown)
    queued()
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # What a terminal says at its end.
        pass
    os.close(terminal)
    assert watch.end() == 0
    assert b"\x1b[J" in shown, "the bar is to be drawn over"
    assert re.search(rb"job/b  succeeded .*\r\n$", shown)


def test_a_reader_that_goes_away_is_no_error(start_ckptctl, trainer, queued, tmp_path):
    watch = start_ckptctl("watch", "-o", "json")
    watch.read_until("job/saves/b")
    watch.process.stdout.close()
    trainer.save("jobs/new/saves/c", tmp_path / "c.pt")
    assert watch.end() == 0
    assert watch.process.stderr.read() == ""


# ---- usage and errors


def test_no_daemon(ckptctl, tmp_path):
    for command in (["status"], ["list"], ["get", "a/b"], ["watch"], ["flush"]):
        address = f"unix:{tmp_path}/none.sock"
        result = ckptctl(*command, address=address)
        assert result.returncode == 3
        assert address in sentence(result)
        assert "Start it with `ckptd`" in sentence(result)


def test_address_flag_comes_before_the_environment(ckptctl, daemon):
    assert ckptctl("--address", daemon.address, "status", address="unix:/none").returncode == 0
    assert ckptctl("status", "-a", daemon.address, address="unix:/none").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["get"],
        ["get", "no-slash"],
        ["get", "jobs/x/save/y"],
        ["list", "--state", "sleeping"],
        ["list", "--page-size", "0"],
        ["list", "--all", "--page-token", "1"],
        ["status", "--output", "xml"],
        ["status", "--timeout", "soon"],
        ["status", "--timeout", "-1"],
        ["status", "surplus"],
    ],
)
def test_wrong_usage(ckptctl, arguments):
    result = ckptctl(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "--help" in result.stderr


def test_no_such_command(ckptctl):
    assert "'lsit' is no command of ckptctl\n" in ckptctl("lsit").stderr


def test_help_and_version(ckptctl):
    text = ckptctl("--help").stdout
    for command in ("status", "list", "get", "watch", "cancel", "flush", "verify"):
        assert re.search(rf"^  {command} ", text, re.M)
        help_text = ckptctl(command, "--help")
        assert help_text.returncode == 0
    assert "Exit codes" in text
    version = ckptctl("--version")
    assert version.returncode == 0
    assert re.fullmatch(r"ckptctl \d+\.\d+\.\d+\n", version.stdout)


def test_full_disk_under_the_output(ckptctl):
    with open("/dev/full", "w") as full:
        result = ckptctl("status", stdout=full)
    assert result.returncode == 1
    assert "No space left on device" in sentence(result)
