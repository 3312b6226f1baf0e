"""Plugins in files: built outside of the tree with nothing but plugin.h, run by a real daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid

import grpc
import numpy
import pytest
from ckptd import rpc
from ckptd.v1 import checkpoint_pb2 as pb
from harness import BUILD, CKPTCTL, REPO, wait_until

# The smallest that is wrong in its own way when it runs.
_CONFIGURED = (REPO / "tests" / "server" / "plugin_host" / "configured_plugin.c").read_text()
_CRASHES = """
#include "plugin.h"
#include <stdlib.h>
static ckptd_code save(const ckptd_host* h, ckptd_call* c, const char* p, const ckptd_spec* s) {
  (void)h; (void)c; (void)p; (void)s; abort();
}
static ckptd_code load(const ckptd_host* h, ckptd_call* c, const char* p, int32_t v) {
  (void)h; (void)c; (void)p; (void)v; return CKPTD_NOT_FOUND;
}
static ckptd_code forget(const ckptd_host* h, ckptd_call* c, const char* p) {
  return h->remove_path(c, p);
}
CKPTD_PLUGIN_EXPORT const ckptd_backend ckptd_plugin = {
    .size = sizeof(ckptd_backend), .abi_major = MAJOR, .name = "crashes", .version = "1",
    .save = save, .load = load, .remove = forget};
"""


def build(folder, name, source, *flags):
    """Compiles a plugin as a stranger would."""
    shutil.copy(REPO / "plugins" / "abi" / "plugin.h", folder)
    (folder / f"{name}.c").write_text(source)
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-I.", *flags]
    subprocess.run([*command, f"{name}.c", "-o", f"{name}.so"], cwd=folder, check=True)
    return folder / f"{name}.so"


@pytest.fixture
def plugins(tmp_path):
    folder, elsewhere = tmp_path / "plugins", tmp_path / "elsewhere"
    folder.mkdir(mode=0o755)
    elsewhere.mkdir()
    example = (REPO / "plugins" / "example" / "npy.c").read_text()
    shutil.move(build(elsewhere, "npy", example), folder)
    shutil.move(build(elsewhere, "crashes", _CRASHES, "-DMAJOR=1"), folder)
    shutil.move(build(elsewhere, "other", _CRASHES, "-DMAJOR=2"), folder)
    (folder / "text.so").write_text("no shared object")
    return folder


class Trainer:
    """A trainer without a client library."""

    def __init__(self, daemon):
        self._channel = rpc.open_channel(daemon.address)
        self.stub = rpc.Stub(self._channel)
        self._session = self.stub.OpenSession(pb.OpenSessionRequest(client="test"))
        self.session = next(self._session).session_id

    def save(self, backend, path, tensors, dtype=""):
        name = f"jobs/j/saves/{uuid.uuid4().hex}"
        specs = [
            pb.TensorSpec(
                name=key, dtype=dtype or str(value.dtype), shape=value.shape, size_bytes=value.nbytes
            )
            for key, value in tensors.items()
        ]
        request = pb.BeginSaveRequest(
            session_id=self.session, name=name, path=str(path), backend=backend, tensors=specs
        )
        begun = self.stub.BeginSave(request, timeout=60)
        with open(begun.image.path, "r+b") as image:
            for offset, value in zip(begun.tensor_offsets, tensors.values()):
                image.seek(offset)
                image.write(value.tobytes())
        self.stub.CommitSave(pb.CommitSaveRequest(name=name), timeout=60)
        ended = None

        def has_ended():
            nonlocal ended
            ended = self.stub.GetSave(pb.GetSaveRequest(name=name), timeout=60)
            return ended.HasField("end_time")

        wait_until(has_ended, "the end of the save")
        return ended

    def load(self, backend, path):
        request = pb.BeginLoadRequest(session_id=self.session, path=str(path), backend=backend)
        begun = self.stub.BeginLoad(request, timeout=60)
        parts = self.stub.ReadLoad(pb.ReadLoadRequest(load_id=begun.load_id), timeout=60)
        data = b"".join(part.data for part in parts)
        self.stub.EndLoad(pb.EndLoadRequest(load_id=begun.load_id), timeout=60)
        assert len(data) == begun.size_bytes
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        body = data[8 + length :]
        return {
            key: body[slice(*value["data_offsets"])]
            for key, value in header.items()
            if key != "__metadata__"
        }

    def close(self):
        self._session.cancel()
        self._channel.close()


@pytest.fixture
def daemon_with(make_daemon, plugins):
    return make_daemon("--plugin-dir", str(plugins))


@pytest.fixture
def trainer(daemon_with):
    trainer = Trainer(daemon_with)
    yield trainer
    trainer.close()


def test_example_saves_loads_and_removes(trainer, tmp_path):
    state = {
        "layer.weight": numpy.arange(12, dtype="float32").reshape(3, 4),
        "count": numpy.array(7, dtype="int64"),
        "mask": numpy.array([True, False]),
        "none": numpy.zeros((0, 3), dtype="float64"),
    }
    path = tmp_path / "a.ckpt"
    for _ in range(2):  # anew, and over what is there
        save = trainer.save("npy", path, state)
        assert save.state == pb.Save.SUCCEEDED, save.error
    count, *lines = (path / "index.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    assert int(count) == len(rows)
    stored = {name: numpy.load(path / file) for name, file, *_ in rows}
    assert stored.keys() == state.keys()
    for name, array in stored.items():
        assert array.dtype == state[name].dtype
        assert numpy.array_equal(array, state[name])
    loaded = trainer.load("npy", path)
    assert loaded == {key: value.tobytes() for key, value in state.items()}
    request = pb.RemoveCheckpointRequest(parent="jobs/j", path=str(path), wait=True, backend="npy")
    trainer.stub.RemoveCheckpoint(request, timeout=60)
    assert not path.exists()
    with pytest.raises(grpc.RpcError) as error:
        trainer.load("npy", path)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_crash_is_the_error_of_the_one_save(trainer, tmp_path):
    state = {"w": numpy.ones(3, dtype="float32")}
    save = trainer.save("crashes", tmp_path / "a", state)
    assert save.state == pb.Save.FAILED
    assert "signal 6" in save.error.message
    assert trainer.save("npy", tmp_path / "b", state).state == pb.Save.SUCCEEDED
    assert "signal 6" in trainer.save("crashes", tmp_path / "a", state).error.message


def test_what_it_cannot_keep_is_refused_by_name(trainer, tmp_path):
    state = {"layer.w": numpy.ones(3, dtype="int16")}
    save = trainer.save("npy", tmp_path / "a", state, dtype="bfloat16")
    assert save.state == pb.Save.FAILED
    assert "layer.w" in save.error.message
    assert not os.path.exists(tmp_path / "a")


def test_status_tells_of_each_plugin(daemon_with, plugins):
    status = daemon_with.status()
    backends = {backend.name: backend for backend in status.backend_details}
    assert set(backends) == {"python", "safetensors", "torch", "xla", "xla-xser", "npy", "crashes"}
    assert backends["npy"].file == str(plugins / "npy.so")
    assert "hosted" in backends["npy"].capabilities
    refused = {os.path.basename(one.file): one.error.message for one in status.refused_plugins}
    assert set(refused) == {"other.so", "text.so"}
    assert "2" in refused["other.so"]


def test_a_folder_that_others_may_write_is_refused(make_daemon, plugins):
    plugins.chmod(0o777)
    status = make_daemon("--plugin-dir", str(plugins)).status()
    assert "npy" not in status.backends
    assert status.refused_plugins


def test_it_tells_what_is_in_its_checkpoint(trainer, tmp_path):
    state = {"layer.w": numpy.ones((2, 3), dtype="float32"), "n": numpy.ones((), dtype="int64")}
    assert trainer.save("npy", tmp_path / "a", state).state == pb.Save.SUCCEEDED
    request = pb.InspectCheckpointRequest(path=str(tmp_path / "a"), backend="npy")
    pages = trainer.stub.InspectCheckpoint(request, timeout=60)
    told = [(t.name, t.dtype, list(t.shape), t.size_bytes) for page in pages for t in page.tensors]
    assert told == [("layer.w", "float32", [2, 3], 24), ("n", "int64", [], 8)]


def configured(tmp_path, name="configured", *flags):
    """A folder with a plugin that has a setting, compiled with these flags."""
    folder, elsewhere = tmp_path / f"plugins-{name}", tmp_path / f"elsewhere-{name}"
    folder.mkdir(mode=0o755)
    elsewhere.mkdir()
    source = _CONFIGURED.replace("plugins/abi/plugin.h", "plugin.h")
    shutil.move(build(elsewhere, name, source, *flags), folder)
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        # One of an earlier MINOR, whose table ends behind what is required.
        ["-DTABLE_SIZE=offsetof(ckptd_backend, configure)", "-DMINOR=0", "-DWITHOUT_CONFIGURE"],
        ["-DTABLE_SIZE=offsetof(ckptd_backend, verify)", "-DMINOR=0"],
        # One of a later MINOR: what the host does not know of its table it does not read.
        ["-DMINOR=CKPTD_PLUGIN_ABI_MINOR+7"],
    ],
    ids=["required only", "earlier", "later"],
)
def test_tables_of_other_minors_load(make_daemon, tmp_path, flags):
    daemon = make_daemon("--plugin-dir", str(configured(tmp_path, "configured", *flags)))
    assert not daemon.status().refused_plugins
    trainer = Trainer(daemon)
    save = trainer.save("configured", tmp_path / "a", {"w": numpy.ones(3, dtype="float32")})
    assert save.state == pb.Save.SUCCEEDED, save.error
    assert trainer.load("configured", tmp_path / "a") == {}
    trainer.close()


def test_a_table_that_lacks_what_is_required_is_refused(make_daemon, tmp_path):
    flags = ["-DTABLE_SIZE=offsetof(ckptd_backend, remove)", "-DWITHOUT_CONFIGURE"]
    folder = configured(tmp_path, "configured", *flags)
    (refused,) = make_daemon("--plugin-dir", str(folder)).status().refused_plugins
    assert "what is required" in refused.error.message


def test_settings_that_a_plugin_does_not_take_refuse_it_at_the_start(make_daemon, tmp_path):
    folder, config = configured(tmp_path), tmp_path / "config.toml"
    config.write_text("[backend.configured]\nlevel = 10\n")
    daemon = make_daemon("--plugin-dir", str(folder), "--config", str(config))
    (refused,) = daemon.status().refused_plugins
    assert refused.error.message.endswith("level: must be below 10; give another one")
    assert "[backend.configured]" in refused.error.message
    assert "configured" not in daemon.status().backends
    listed = subprocess.run([CKPTCTL, "-a", daemon.address, "status"], capture_output=True, text=True)
    assert "level: must be below 10" in listed.stdout
    # It serves on.
    daemon.client().save({}, tmp_path / "a").result()
    config.write_text("[backend.configured]\nlevel = 9\n")
    assert daemon.stop() == 0
    daemon.start()
    assert "configured" in daemon.status().backends


def test_settings_that_are_not_taken_later_are_the_error_of_each_save(make_daemon, tmp_path):
    """As with a plugin that asks a server about them, or one that was replaced."""
    folder, config = configured(tmp_path), tmp_path / "config.toml"
    config.write_text("[backend.configured]\nlevel = 9\n")
    daemon = make_daemon("--plugin-dir", str(folder), "--config", str(config))
    stricter = tmp_path / "stricter"
    stricter.mkdir()
    source = _CONFIGURED.replace("plugins/abi/plugin.h", "plugin.h")
    other = build(stricter, "configured", source, "-DMOST_DIGITS=0")
    os.replace(other, folder / "configured.so")
    trainer = Trainer(daemon)
    save = trainer.save("configured", tmp_path / "a", {"w": numpy.ones(3, dtype="float32")})
    assert save.state == pb.Save.FAILED
    assert "level: must be below 10" in save.error.message
    trainer.close()


def test_a_plugin_dir_that_is_not_there_is_wrong_usage(tmp_path):
    done = subprocess.run(
        [BUILD / "bin" / "ckptd", "--plugin-dir", tmp_path / "none", "--socket", tmp_path / "socket"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2
    assert f"'{tmp_path}/none' is no folder" in done.stderr
