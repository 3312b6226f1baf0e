"""A C++ training program is killed, resumed, and ends with the weights of one that was not."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch

STEPS = ("--steps", "400", "--save-every", "20", "--width", "128")


def weights(output: str) -> str:
    """The checksum of the final weights."""
    return output.splitlines()[-1].removeprefix("weights ")


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_resumes_bit_for_bit(daemon, run, build, tmp_path, transport):
    program = build / "bin" / "ckptd_example_train"
    flags = (*STEPS, "--transport", transport)
    whole = run(program, *flags, "--path", tmp_path / "whole.ckpt")

    path = tmp_path / "killed.ckpt"
    training = subprocess.Popen(
        [program, *flags, "--path", path],
        env={**os.environ, "CKPTD_ADDRESS": daemon.address},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in training.stdout:
        if line.startswith("saved step 100"):
            training.kill()
            break
    training.communicate()
    assert training.returncode == -9

    resumed = run(program, *flags, "--path", path, "--resume")
    first = resumed.stdout.splitlines()[0]
    assert first.startswith("resumed at step ")
    assert 100 <= int(first.split()[-1]) < 400
    assert weights(resumed.stdout) == weights(whole.stdout)

    state = torch.load(path, weights_only=True)
    assert state["step"] == 400
    assert list(state["model"])[0] == "0.weight"
    assert state["optimizer"]["state"][0]["step"] == 400
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["killed.ckpt", "whole.ckpt"]


def test_says_what_is_wrong(run, build, tmp_path):
    program = build / "bin" / "ckptd_example_train"
    missing = run(program, "--resume", "--path", tmp_path / "none.ckpt", check=False)
    assert missing.returncode == 1
    assert str(tmp_path / "none.ckpt") in missing.stderr
