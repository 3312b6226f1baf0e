"""Names: addresses, jobs, paths, arguments; needs no daemon."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import ckptd
import pytest
from ckptd import names
from harness import REPO


def test_version_is_that_of_the_project():
    assert ckptd.__version__ == (REPO / "VERSION").read_text().strip()
    assert (
        f'version = "{ckptd.__version__}"'
        in (REPO / "client" / "python" / "pyproject.toml").read_text()
    )


def test_default_address(monkeypatch):
    monkeypatch.setenv("CKPTD_ADDRESS", "localhost:1234")
    assert names.default_address() == "localhost:1234"
    monkeypatch.delenv("CKPTD_ADDRESS")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert names.default_address() == "unix:/run/user/7/ckptd/ckptd.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("os.getuid", lambda: 7)
    assert names.default_address() == "unix:/tmp/ckptd-7/ckptd.sock"


def test_job_comes_from_argument_environment_launcher_or_process(monkeypatch):
    for name in ("CKPTD_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert str(__import__("os").getpid()) in ckptd.Client().job
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert ckptd.Client().job == "77"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun without an id
    assert ckptd.Client().job == "77"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run 5/é")
    assert ckptd.Client().job == "run-5-"
    monkeypatch.setenv("CKPTD_JOB", "mine")
    assert ckptd.Client().job == "mine"
    assert ckptd.Client(job="x" * 80).job == "x" * 63
    assert ckptd.Client(job="-").job == "job"  # jobs/- means every job


def test_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert names.local_path("a/b.ckpt") == f"{tmp_path}/a/b.ckpt"
    assert names.local_path(Path("/x/y.ckpt")) == "/x/y.ckpt"
    for url in ("s3://bucket/a.ckpt", "memory://a.ckpt", "file:///a.ckpt"):
        with pytest.raises(ValueError, match="mounted file systems only"):
            ckptd.Client(on_unavailable="raise").save({}, url)
    with pytest.raises(ValueError, match="empty"):
        names.local_path("")
    with pytest.raises(ValueError, match="UTF-8"):
        names.local_path(b"/x/\xff.ckpt".decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"on_full": "drop"}, "on_full: 'drop' is not supported; use \"block\" or"),
        ({"on_unavailable": "hope"}, "on_unavailable: 'hope' is not supported"),
        ({"transport": "tcp"}, "transport: 'tcp' is not supported"),
        ({"timeout": 0}, "timeout: 0 is not a number of seconds above 0"),
    ],
)
def test_wrong_arguments(arguments, text):
    with pytest.raises(ValueError) as caught:
        ckptd.Client(**arguments)
    assert text in str(caught.value)


def test_client_pickles_and_copies_by_its_arguments():
    client = ckptd.Client(address="unix:/x", job="j", timeout=3, transport="grpc")
    for other in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client)):
        assert (other.address, other.job, other.timeout) == ("unix:/x", "j", 3.0)
        assert repr(other) == repr(client)


def test_errors_pickle_with_their_fields():
    error = ckptd.SaveTimeoutError("late", reason="STAGING_FULL", path="/a", save="jobs/j/saves/s")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, TimeoutError) and isinstance(again, ckptd.SaveError)
    assert (str(again), again.reason, again.path, again.save) == (
        "late",
        "STAGING_FULL",
        "/a",
        "jobs/j/saves/s",
    )
