"""The backends that the suite is run over, and what their tests ask of each."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Optional

import ckptd
import torch
from harness import BUILD, CKPTCTL, REPO, WAIT_SECONDS, Daemon, wait_until
from steps import Steps

#: Refuses nothing that a trainer has, or says by name what it refuses.
REFUSALS = (ckptd.UnpicklableError, ckptd.SaveError, RuntimeError)


@dataclass(frozen=True)
class Subject:
    """A backend: where its code is, if not in the daemon."""

    name: str
    plugin: Optional[Path] = None
    checkpoint_io: str = ""  # MODULE:CLASS

    def __str__(self) -> str:
        return self.name


def subjects() -> List[Subject]:
    """All that are here, or the one that the environment names; see the script `run`."""
    plugin = os.environ.get("CKPTD_CONFORMANCE_PLUGIN", "")
    if plugin:
        return [Subject(probe(Path(plugin)), plugin=Path(plugin))]
    everything = [
        Subject("torch"),
        Subject("xla"),
        Subject("xla-xser"),
        Subject("safetensors"),
        Subject("npy", plugin=REPO / "plugins" / "example" / "npy.c"),
        Subject("mine", checkpoint_io="file_io:FileIO"),
    ]
    wanted = os.environ.get("CKPTD_CONFORMANCE_BACKEND", "")
    if ":" in wanted:
        return [Subject("mine", checkpoint_io=wanted)]
    found = [one for one in everything if wanted in ("", one.name)]
    if not found:
        raise RuntimeError(f"{wanted}: is none of {', '.join(map(str, everything))}")
    return found


def probe(plugin: Path) -> str:
    """The name of a plugin; raises what is wrong with it."""
    found = subprocess.run(
        [BUILD / "bin" / "ckptd", "--plugin-probe", plugin],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if found.returncode != 0:
        raise RuntimeError(f"{plugin}: {found.stdout or found.stderr}")
    return found.stdout.splitlines()[0]


def build_plugin(source: Path, folder: Path) -> Path:
    """Compiles a plugin as a stranger would: with plugin.h beside it and nothing else."""
    shutil.copy(REPO / "plugins" / "abi" / "plugin.h", folder)
    shutil.copy(source, folder)
    target = folder / f"{source.stem}.so"
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-I.", source.name, "-o", target]
    subprocess.run(command, cwd=folder, check=True)
    return target


class Backend:
    """A subject in a daemon of its own, all of whose calls the test may stop."""

    def __init__(self, subject: Subject, folder: Path, steps: Steps) -> None:
        self.subject = subject
        self.steps = steps
        self.is_plugin = subject.plugin is not None
        # "PATH.tensors" is a part of the checkpoint at PATH.
        self._has_folder_beside = subject.name == "xla-xser"
        self.longest_name = 255 - (len(".tensors") if self._has_folder_beside else 0)
        self.is_python = bool(subject.checkpoint_io)
        flags = ["--staging-budget", "1GiB"]
        if subject.plugin is not None:
            flags += ["--plugin-dir", str(self._install(subject.plugin, folder))]
        if "CKPTD_CONFORMANCE_CONFIG" in os.environ:
            flags += ["--config", os.environ["CKPTD_CONFORMANCE_CONFIG"]]
        if self.is_python:
            module, _, kind = subject.checkpoint_io.partition(":")
            ckptd.backend.register(subject.name, getattr(importlib.import_module(module), kind))
        variables = [f"{name}={value}" for name, value in steps.environment.items()]
        self.daemon = Daemon(folder, *flags, wrapper=("env", *variables))
        self.client = self.daemon.client(job="conformance", timeout=2 * WAIT_SECONDS)
        refused = [one.error.message for one in self.daemon.status().refused_plugins]
        assert not refused, refused

    @property
    def is_hosted(self) -> bool:
        """Whether a host process does what it does, one thing at a time."""
        return self.is_plugin or self.is_python or self._has_folder_beside

    def listed(self, folder: Path) -> List[str]:
        """What is in a folder; a checkpoint is one name there."""
        names = sorted(os.listdir(folder))
        if not self._has_folder_beside:
            return names
        return [one for one in names if one.removesuffix(".tensors") not in set(names) - {one}]

    @staticmethod
    def _install(plugin: Path, folder: Path) -> Path:
        if plugin.suffix == ".c":
            plugin = build_plugin(plugin, folder)
        plugins = folder / "plugins"
        plugins.mkdir(mode=0o755)
        shutil.copy(plugin, plugins / plugin.name)
        (plugins / plugin.name).chmod(0o755)
        return plugins

    def close(self) -> None:
        """Ends the daemon."""
        self.steps.release()
        self.client.close()
        self.daemon.clean_up()

    # ---- What a trainer does

    def save(self, state: Any, path: Path) -> ckptd.Save:
        """Has a save accepted."""
        return self.client.save(state, path, backend=self.subject.name)

    def load(self, path: Path) -> Any:
        """What is at the path, in this process and its own memory."""
        return self.client.load(path, backend=self.subject.name, weights_only=False)

    def remove(self, path: Path) -> None:
        """Removes it, and waits for that."""
        self.client.remove(path, backend=self.subject.name)

    def refusal(self, state: Any, path: Path) -> Optional[Exception]:
        """Saves; why it was refused, if it was."""
        try:
            self.save(state, path).result()
        except REFUSALS as error:
            return error
        return None

    def found(self, path: Path) -> Any:
        """What a load finds; None where there is nothing."""
        try:
            return self.load(path)
        except FileNotFoundError:
            return None

    def survive(self, call: Callable[[], None]) -> Optional[Exception]:
        """Makes a call, and starts the daemon again whenever it dies meanwhile. Its error, if any."""
        end: "Future[Optional[Exception]]" = Future()

        def run() -> None:
            try:
                call()
                end.set_result(None)
            except ckptd.CheckpointError as error:
                end.set_result(error)
            except BaseException as error:  # noqa: BLE001 - it is the test's
                end.set_exception(error)

        thread = threading.Thread(target=run)
        thread.start()

        def ended() -> bool:
            if self.daemon.process.poll() is not None:
                self.daemon.start()
            return end.done()

        wait_until(ended, "the end of a call", 3 * WAIT_SECONDS)
        thread.join()
        return end.result()

    @staticmethod
    def is_whole(path: Path) -> bool:
        """Whether ckptd.verify finds that a file is what was saved."""
        try:
            ckptd.verify(path)
        except (ckptd.CheckpointError, IsADirectoryError):  # damaged, or nothing that it knows
            return False
        return True


def plain(state: Any) -> Any:
    """Equal for states with the same tensors, bit for bit, in the same places; strides do not count."""
    if isinstance(state, torch.Tensor):
        dense = state.detach().to_dense().resolve_conj().contiguous()
        whole = torch.empty(0, dtype=torch.uint8)
        if dense.numel() > 0:
            whole = dense.view(-1).view(torch.uint8) if dense.dim() else dense.view(1).view(torch.uint8)
        return str(state.dtype), tuple(state.shape), whole.numpy().tobytes()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [type(state).__name__, *map(plain, state)]
    return state


def ckptctl_verifies(path: Path) -> subprocess.CompletedProcess:
    """ckptctl verify of one file."""
    return subprocess.run([CKPTCTL, "verify", path], capture_output=True, text=True)
