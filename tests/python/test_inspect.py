"""ckptctl inspect and verify: files of torch and safetensors, and checkpoints of backends."""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import subprocess
import threading
import uuid
import zipfile
from collections import OrderedDict

import grpc
import pytest
import torch
from ckptd import rpc
from ckptd.errors import reason_of, status_of
from ckptd.v1 import checkpoint_pb2 as pb
from harness import CKPTCTL, WAIT_SECONDS
from test_plugins import build

_NOWHERE = "unix:/nowhere/ckptd.sock"
# A backend that says what it is asked, and fails where it is told to.
_LOOKED_AT = """
#include "plugin.h"
#include <stdio.h>
#include <string.h>
static ckptd_code fail(const ckptd_host* h, ckptd_call* c, ckptd_code code, const char* why) {
  h->set_error(c, why, strlen(why));
  return code;
}
static ckptd_code save(const ckptd_host* h, ckptd_call* c, const char* p, const ckptd_spec* s) {
  ckptd_bytes piece = {"x", 1};
  (void)s;
  return h->publish_file(c, p, &piece, 1);
}
static ckptd_code load(const ckptd_host* h, ckptd_call* c, const char* p, int32_t v) {
  (void)v;
  return fail(h, c, CKPTD_NOT_FOUND, p);
}
static ckptd_code forget(const ckptd_host* h, ckptd_call* c, const char* p) {
  return h->remove_path(c, p);
}
static int is_there(const char* p) {
  FILE* in = fopen(p, "r");
  if (in != NULL) fclose(in);
  return in != NULL;
}
static ckptd_code verify(const ckptd_host* h, ckptd_call* c, const char* p) {
  if (!is_there(p)) return fail(h, c, CKPTD_NOT_FOUND, "not there");
  if (strstr(p, "damaged") != NULL) return fail(h, c, CKPTD_DATA_LOSS, "a byte has flipped");
  if (strstr(p, "unsure") != NULL) return fail(h, c, CKPTD_FAILED_PRECONDITION, "who knows");
  return CKPTD_OK;
}
static ckptd_code inspect(const ckptd_host* h, ckptd_call* c, const char* p) {
  static const int64_t shape[] = {2, 3}, strides[] = {3, 1};
  char name[32];
  int i;
  if (!is_there(p)) return fail(h, c, CKPTD_NOT_FOUND, "not there");
  for (i = 0; i < 20000; ++i) {
    const ckptd_tensor t = {name, "float32", shape, strides, 2, 24, NULL};
    ckptd_code code;
    sprintf(name, "layer.%d", i);
    code = h->found(c, &t);
    if (code != CKPTD_OK) return code;
  }
  return CKPTD_OK;
}
CKPTD_PLUGIN_EXPORT const ckptd_backend ckptd_plugin = {
    .size = sizeof(ckptd_backend), .abi_major = 1, .name = "NAME", .version = "1",
    .save = save, .load = load, .remove = forget LOOKS};
"""


def ckptctl(*arguments, address=_NOWHERE, code=0):
    """Runs it; returns what it printed, and what it complained about."""
    done = subprocess.run(
        [CKPTCTL, *map(str, arguments)],
        env={**os.environ, "CKPTD_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=5 * WAIT_SECONDS,
    )
    assert done.returncode == code, done
    return done.stdout, done.stderr


def inspect(*arguments, **options):
    """What it tells programs."""
    return json.loads(ckptctl("inspect", "--output", "json", *arguments, **options)[0])


def by_name(told):
    return {tensor["name"]: tensor for tensor in told["tensors"]}


def make_state():
    layer = torch.nn.Linear(3, 4)
    layer.tied = layer.weight
    base = torch.arange(12.0).reshape(3, 4)
    return {
        "model": layer.state_dict(),
        "list": [torch.ones(2, dtype=torch.bfloat16), (torch.tensor(7),)],
        "param": torch.nn.Parameter(torch.ones(2)),
        "view": base[1:, ::2],
        "new": torch.zeros(3, dtype=torch.uint16),
        "empty": torch.empty(0, 5),
        "ordered": OrderedDict(a=torch.ones(1).requires_grad_()),
        3: torch.ones(1, dtype=torch.complex64).conj(),
        "epoch": 7,
        "rate": 0.5,
        "done": False,
        "none": None,
        "text": "x" * 100,
    }


def leaves(value, path=()):
    """The tensors of a state with their paths."""
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from leaves(part, (*path, str(key)))


def check_tensors(told, state):
    found = by_name(told)
    expected = dict(leaves(state))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        one = found[name]
        assert one["dtype"] == str(tensor.dtype).removeprefix("torch."), name
        assert [int(size) for size in one["shape"]] == list(tensor.shape), name
        assert [int(stride) for stride in one["strides"]] == list(tensor.stride()), name
        assert int(one["offset"]) == tensor.storage_offset(), name
        assert int(one["bytes"]) == tensor.numel() * tensor.element_size(), name
        assert one["requires_grad"] == tensor.requires_grad, name
        assert one["parameter"] == isinstance(tensor, torch.nn.Parameter), name
    return found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_save_writes(tmp_path, protocol):
    state = make_state()
    torch.save(state, tmp_path / "a.pt", pickle_protocol=protocol)
    told = inspect(tmp_path / "a.pt")
    found = check_tensors(told, state)
    assert found["model.tied"]["same_as"] == "model.weight"
    assert found["model.tied"]["storage"] == found["model.weight"]["storage"]
    assert [name for name, one in found.items() if "same_as" in one] == ["model.tied"]
    values = {value["name"]: value["value"] for value in told["values"]}
    assert values == {
        "epoch": "7",
        "rate": "0.5",
        "done": "False",
        "none": "None",
        "text": "'" + "x" * 100 + "'",
    }
    assert (told["format"], told["unknown"]) == ("torch", [])
    assert int(told["bytes"]) == (tmp_path / "a.pt").stat().st_size
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        records = [(one.filename.split("/", 1)[1], str(one.file_size)) for one in archive.filelist]
    assert [(one["name"], one["bytes"]) for one in told["records"]] == records


def test_other_orders_and_records_of_a_zip(tmp_path):
    """Storages in front, compressed, without the records that came later, as others write files."""
    state = make_state()
    torch.save(state, tmp_path / "a.pt")
    late = ("byteorder", "version", "serialization_id", ".format_version", ".storage_alignment")
    for name, kind in (("stored.pt", zipfile.ZIP_STORED), ("deflated.pt", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / "a.pt") as source:
            records = {one: source.read(one) for one in source.namelist() if not one.endswith(late)}
        with zipfile.ZipFile(tmp_path / name, "w", kind) as target:
            for one in reversed(records):
                target.writestr(one, records[one])
        told = inspect(tmp_path / name)
        check_tensors(told, state)
        assert len(told["records"]) == len(records)


def test_objects_are_noted_and_not_made(tmp_path):
    class Spy:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    layer = torch.nn.Linear(2, 2)
    state = {"module": layer, "hyper": argparse.Namespace(lr=1), "spy": Spy(), "w": torch.ones(2)}
    torch.save(state, tmp_path / "a.pt")
    told = inspect(tmp_path / "a.pt")
    found = by_name(told)
    assert found["w"]["dtype"] == "float32"
    assert found["module._parameters.weight"]["shape"] == ["2", "2"]
    assert told["unknown"] == [
        "argparse.Namespace",
        f"{os.mkdir.__module__}.mkdir",
        "torch.nn.modules.linear.Linear",
    ]
    assert not (tmp_path / "made").exists()
    text, _ = ckptctl("inspect", tmp_path / "a.pt")
    assert "Not known without unpickling: argparse.Namespace" in text


def test_for_people(tmp_path):
    weight = torch.ones(2, 3)
    torch.save({"model": {"w\x1b": weight, "tied": weight}, "epoch": 3}, tmp_path / "a.pt")
    text, _ = ckptctl("inspect", tmp_path / "a.pt")
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith(f"{tmp_path}/a.pt: torch, ")
    assert "2 tensors of 24 B" in text, "tied ones take no memory of their own"
    assert ["model.w\\x1b", "float32", "[2,", "3]", "24", "B"] in lines
    assert ["model.tied", "float32", "[2,", "3]", "24", "B", "same", "as", "model.w\\x1b"] in lines
    assert ["epoch", "3"] in lines


def test_what_cannot_be_read(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _, why = ckptctl("inspect", tmp_path / "old.pt", code=1)
    assert "is a file as torch.save wrote them before torch 1.6" in why
    (tmp_path / "text").write_text("no checkpoint")
    assert "--backend" in ckptctl("inspect", tmp_path / "text", code=1)[1]
    assert "not found" in ckptctl("inspect", tmp_path / "none.pt", code=1)[1]
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a/b", "c")
    assert "no data.pkl" in ckptctl("inspect", tmp_path / "other.zip", code=1)[1]
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-30])
    assert "truncated" in ckptctl("inspect", tmp_path / "cut.pt", code=1)[1]
    # Whatever is wrong with the pickle, the records are told.
    with zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x01N.")
    told = inspect(tmp_path / "odd.pt", code=1)
    assert told["reason"] == "NOT_READABLE"
    assert told["records"] == [{"name": "data.pkl", "bytes": "4"}]


def test_a_missing_storage_is_damage(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source:
        data = source.read("a/data.pkl")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        target.writestr("b/data.pkl", data)
    assert inspect(tmp_path / "b.pt", code=1)["reason"] == "CORRUPT_CHECKPOINT"


def foreign_safetensors(path, tensors, metadata=None):
    """As the package safetensors writes it, which ckptd does without."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, itemsize) in tensors.items():
        size = math.prod(shape) * itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


def test_safetensors(tmp_path, client):
    foreign = tmp_path / "foreign.safetensors"
    foreign_safetensors(foreign, {"w": ("BF16", [2, 3], 2), "s": ("F32", [], 4)}, {"by": "me"})
    told = inspect(foreign)
    assert told["format"] == "safetensors"
    assert told["tensors"] == [
        {"name": "w", "dtype": "bfloat16", "shape": ["2", "3"], "bytes": "12"},
        {"name": "s", "dtype": "float32", "shape": [], "bytes": "4"},
    ]
    assert told["values"] == [{"name": "by", "value": "me"}]
    failed = json.loads(ckptctl("verify", "-o", "json", foreign, code=1)[0])["files"][0]
    assert failed["reason"] == "NOT_VERIFIABLE"

    ours = tmp_path / "ours.safetensors"
    client.save({"w": torch.ones(2, 3)}, ours, backend="safetensors").result(timeout=WAIT_SECONDS)
    assert by_name(inspect(ours))["w"]["shape"] == ["2", "3"]
    assert "  ok  1 records" in ckptctl("verify", ours)[0]
    content = bytearray(ours.read_bytes())
    content[-1] ^= 1
    ours.write_bytes(content)
    failed = json.loads(ckptctl("verify", "-o", "json", ours, code=1)[0])["files"][0]
    assert failed["reason"] == "CORRUPT_CHECKPOINT"


# ---- By a backend ------------------------------------------------------------------------------


@pytest.fixture
def plugin_daemon(tmp_path, make_daemon):
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    looks = ", .verify = verify, .inspect = inspect"
    build(folder, "looked", _LOOKED_AT.replace("NAME", "looked").replace("LOOKS", looks))
    blind = _LOOKED_AT.replace("NAME", "blind").replace("LOOKS", "")
    build(folder, "blind", blind, "-Wno-unused-function")
    return make_daemon("--plugin-dir", str(folder))


def test_a_plugin_is_asked(tmp_path, plugin_daemon):
    address = plugin_daemon.address
    paths = [tmp_path / name for name in ("fine", "damaged", "unsure")]
    for path in paths:
        path.write_text("x")
    told = inspect("--backend", "looked", paths[0], address=address)
    assert told["format"] == "looked"
    assert [tensor["name"] for tensor in told["tensors"]] == [f"layer.{i}" for i in range(20_000)]
    first = {"name": "layer.0", "dtype": "float32", "shape": ["2", "3"], "bytes": "24"}
    assert told["tensors"][0] == first
    text = ckptctl("verify", "-b", "looked", "-o", "json", *paths, address=address, code=1)[0]
    files = json.loads(text)["files"]
    assert [one["ok"] for one in files] == [True, False, False]
    assert [one.get("reason") for one in files] == [None, "CORRUPT_CHECKPOINT", "NOT_VERIFIABLE"]
    assert "a byte has flipped" in files[1]["message"]
    assert "not there" in ckptctl("inspect", "-b", "looked", "no", address=address, code=1)[1]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_cannot_be_asked(tmp_path, plugin_daemon, command):
    (tmp_path / "x").write_text("x")
    reasons = {"blind": "NOT_SUPPORTED", "python": "NOT_SUPPORTED", "no": "BACKEND_NOT_FOUND"}
    for backend, reason in reasons.items():
        with rpc.open_channel(plugin_daemon.address) as channel, pytest.raises(grpc.RpcError) as e:
            stub = rpc.Stub(channel)
            if command == "inspect":
                request = pb.InspectCheckpointRequest(path=str(tmp_path / "x"), backend=backend)
                next(stub.InspectCheckpoint(request, timeout=WAIT_SECONDS))
            else:
                request = pb.VerifyCheckpointRequest(path=str(tmp_path / "x"), backend=backend)
                stub.VerifyCheckpoint(request, timeout=WAIT_SECONDS)
        expected = "NOT_FOUND" if backend == "no" else "UNIMPLEMENTED"
        assert e.value.code().name == expected
        assert reason_of(status_of(e.value)) == reason
    ckptctl(command, "-b", "blind", tmp_path / "x", code=3)


def test_built_in_backends_are_asked_after_what_is_pending(tmp_path, daemon, client):
    path = tmp_path / "a.pt"
    client.save({"w": torch.ones(2)}, path).result(timeout=WAIT_SECONDS)
    with rpc.open_channel(daemon.address) as channel:
        stub = rpc.Stub(channel)
        events = stub.OpenSession(pb.OpenSessionRequest(client="test"))
        session = next(events).session_id
        request = pb.BeginLoadRequest(session_id=session, path=str(path))
        held = stub.BeginLoad(request, timeout=WAIT_SECONDS)
        pending = client.save({"later": torch.ones(3)}, path)
        found = []
        asked = threading.Thread(
            target=lambda: found.append(inspect("-b", "torch", path, address=daemon.address))
        )
        asked.start()
        assert pending.state in ("QUEUED", "PERSISTING") and not found
        stub.EndLoad(pb.EndLoadRequest(load_id=held.load_id), timeout=WAIT_SECONDS)
        asked.join(WAIT_SECONDS)
        events.cancel()
    assert [tensor["name"] for tensor in found[0]["tensors"]] == ["later"]
    assert found[0]["format"] == "torch"
    assert ckptctl("verify", "-b", "torch", path, address=daemon.address)[0] == f"{path}  ok\n"


def test_a_path_outside_of_the_allowed_roots(tmp_path, make_daemon):
    (tmp_path / "in").mkdir()
    daemon = make_daemon("--allow-root", str(tmp_path / "in"))
    outside = tmp_path / f"{uuid.uuid4().hex}.pt"
    torch.save({"w": torch.ones(1)}, outside)
    why = ckptctl("inspect", "-b", "torch", outside, address=daemon.address, code=1)[1]
    assert "--allow-root" in why
