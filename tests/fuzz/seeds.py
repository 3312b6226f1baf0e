"""Makes the inputs that fuzzing begins with, from real messages.

usage: seeds.py OUT_DIR

Leaves OUT_DIR/TARGET/NAME. Run it with .venv/bin/python after scripts/build, for it needs the Python
messages and torch. What it makes is in tests/fuzz/corpus already, minimised; CONTRIBUTING.md says
when and how to do that again.
"""

import collections
import io
import pathlib
import pickle
import struct
import sys
import zipfile

import torch
from ckptd.v1 import checkpoint_pb2 as v1

# The order in which service_fuzz.cc numbers them.
METHODS = (
    "OpenSession CloseSession Reserve BeginSave WriteSave CommitSave AbortSave BeginLoad ReadLoad "
    "EndLoad RemoveCheckpoint Flush GetSave ListSaves WatchSaves CancelSave Advance"
).split()
TOO_LATE = 0x80


def call(method, message=b"", late=False):
    data = message if isinstance(message, bytes) else message.SerializeToString()
    number = METHODS.index(method) | (TOO_LATE if late else 0)
    return struct.pack("<BH", number, len(data)) + data


def path(place):
    """The character for which service_fuzz.cc takes that place."""
    places = ["f", "g", "d", "d/f", "d/e/f", "d//f", "d/./e/../f", "no/such/../../f", "f/g", "d/"]
    return chr(48 + places.index(place))


def begin(name, place, sizes, backend="raw", size=4, **fields):
    tensors = [v1.TensorSpec(name=str(i), size_bytes=n) for i, n in enumerate(sizes)]
    return v1.BeginSaveRequest(
        session_id="0", name=name, path=path(place), backend=backend, object_bytes=size,
        tensors=tensors, umask=0o22, **fields
    )


def save(name, place, content=b"abcd", **fields):
    """BeginSave, WriteSave, CommitSave."""
    return (
        call("BeginSave", begin(name, place, [], size=len(content), **fields))
        + call("WriteSave", v1.WriteSaveRequest(name=name, data=content))
        + call("CommitSave", v1.CommitSaveRequest(name=name))
    )


def service():
    opened = call("OpenSession", v1.OpenSessionRequest(client="host:1 test"))
    flush = call("Flush", v1.FlushRequest(parent="jobs/-"))
    load = call("BeginLoad", v1.BeginLoadRequest(session_id="0", path=path("f")))
    yield "save", opened + save("0", "f") + flush
    yield "save-torch", opened + save("0", "f", backend="torch") + flush
    yield "save-deep", opened + save("0", "d/e/f") + save("1", "d//f") + save("2", "f/g") + flush
    yield "overwrite", opened + save("0", "f") + save("1", "f", b"abcdefgh") + flush
    yield "load", (
        opened + save("0", "f") + load
        + call("ReadLoad", v1.ReadLoadRequest(load_id="0"))
        + call("ReadLoad", v1.ReadLoadRequest(load_id="0", offset=2))
        + call("EndLoad", v1.EndLoadRequest(load_id="0"))
    )
    yield "load-holds-save", opened + save("0", "f") + load + save("1", "f") + flush
    for wait in (False, True):
        remove = v1.RemoveCheckpointRequest(parent="0", path=path("d"), wait=wait)
        yield f"remove-{wait}", (
            opened + save("0", "d/f") + call("RemoveCheckpoint", remove) + save("4", "d/e/f") + flush
        )
    yield "abort", (
        opened + call("BeginSave", begin("0", "f", [8])) + call("AbortSave", v1.AbortSaveRequest(name="0"))
    )
    yield "cancel", (
        opened + load + save("0", "f") + call("CancelSave", v1.CancelSaveRequest(name="0")) + flush
    )
    yield "cancel-waiting", (
        opened + save("0", "f") + flush + load + save("1", "f")
        + call("CancelSave", v1.CancelSaveRequest(name="1"))
    )
    yield "repeat", opened + call("BeginSave", begin("0", "f", [8])) * 2 + save("0", "f")
    yield "budget", (
        opened + call("BeginSave", begin("0", "f", [40000])) + call("BeginSave", begin("1", "g", [40000]))
        + call("BeginSave", begin("2", "g", [80000])) + call("CloseSession", b"0")
    )
    yield "reserve", (
        opened + call("Reserve", v1.ReserveRequest(session_id="0", image_bytes=20000, image_count=2, wait=True))
        + save("0", "f")
    )
    yield "reserve-later", (
        opened + call("Reserve", v1.ReserveRequest(session_id="0", image_bytes=9000, image_count=9))
        + call("CloseSession", b"0")
    )
    for trap in ("refuse", "outside", "overflow", "seal"):
        yield f"trap-{trap}", opened + save("0", "f", options={"trap": trap}) + flush
    yield "people", (
        opened + save("0", "f") + call("GetSave", v1.GetSaveRequest(name="0"))
        + call("WatchSaves", v1.WatchSavesRequest(name="0"))
        + call("WatchSaves", v1.WatchSavesRequest())
        + call("ListSaves", v1.ListSavesRequest(parent="jobs/0", page_size=1, states=[4], page_token="2"))
        + call("Advance")
    )
    yield "history", opened + b"".join(save(str(i), "f") for i in range(8)) + flush
    yield "wrong", (
        opened + call("BeginSave", begin("jobs/\N{LATIN SMALL LETTER E WITH ACUTE}" * 40, "f", []))
        + call("CommitSave", v1.CommitSaveRequest(name="3")) + call("GetSave", v1.GetSaveRequest(name="no name"))
        + call("ListSaves", v1.ListSavesRequest(page_token="x")) + call("ReadLoad", v1.ReadLoadRequest(load_id="x"))
        + call("WriteSave", v1.WriteSaveRequest(name="0", offset=-1, data=b"x"))
    )
    yield "too-late", (
        opened + call("BeginSave", begin("0", "f", [60000])) + call("BeginSave", begin("1", "f", [60000]), True)
        + call("Flush", v1.FlushRequest(parent="jobs/0", path=path("f")), True)
    )


def save_request():
    def request(tensors, **fields):
        fields = {"backend": "torch", "object_bytes": 100, "path": "/c/f", **fields}
        specs = [v1.TensorSpec(name=str(i), dtype="float32", shape=[2, 3], size_bytes=n)
                 for i, n in enumerate(tensors)]
        return v1.BeginSaveRequest(
            session_id="0123456789abcdef", name="jobs/j/saves/s", tensors=specs, umask=18, **fields
        ).SerializeToString()

    yield "none", request([])
    yield "some", request([0, 1, 63, 64, 65, 4096, 0])
    yield "many", request([4] * 120)
    yield "large", request([(1 << 32) - 1, 1 << 32, 7, 1 << 49])
    yield "at-4-gib", request([(1 << 32) - 80, 7, 0])
    yield "too-large", request([1 << 50, 1 << 50])
    yield "too-large-object", request([], object_bytes=(1 << 63) - 1)
    yield "negative", request([-1])
    yield "no-object", request([1], object_bytes=0)
    yield "option", request([1], options={"key": "value"})
    twice = v1.BeginSaveRequest.FromString(request([1, 1]))
    twice.tensors[1].name = "0"
    yield "twice", twice.SerializeToString()
    twice.tensors[1].name = "1\0x"
    yield "zero-byte", twice.SerializeToString()


def config():
    yield "all", (
        b'socket = "/run/user/0/ckptd/ckptd.sock"\npool-dir = "/dev/shm/ckptd-0"\n'
        b'staging-budget = "8GiB"\ndrain-timeout = "5m"\nidle-exit = "1h30m"\nlog-level = "debug"\n'
    )
    yield "comments", b"# comment\n\n[section]\nlog-level = 'warn' # more\n[[list]]\na.b.c = 1\n"
    yield "values", b'staging-budget = 1_000\nidle-exit = ["1s", "2s"]\nlog-level = """\noff\n"""\n'
    yield "wrong", b'staging-budget = "-1"\nunknown = true\nlog-level = loud\n{}\n[a\n"'
    yield "flags", b"log-level=off\0--log-level=info\0--staging-budget\x00500MB\0--idle-exit=0"
    yield "help", b"\0--help"
    yield "version", b"\0--version"
    yield "help-in-file", b"help = true\nversion = true\nconfig = \"x\"\n"
    yield "wrong-flags", b"\0--idle-exit=-1s\0--log-level\0positional\0--\0-x\0--no-such=1"


def paths():
    for i, text in enumerate(
        "f real/f link/f deep/f real/sub/f real/file real/file/f loop/f dangling dangling/f n/f "
        "no/such/f no//such/./f no/../f no/such/../../link/f real/up/real/f ../../f real/.. . .. / "
        "real/ link//sub/./f real/no/../../link/sub/f /".split()
    ):
        yield str(i), text.encode()
    yield "empty", b""
    yield "zero", b"a\0b"
    yield "long-name", b"x" * 256
    yield "longest", b"n/" + b"/".join([b"y" * 200] * 20)
    yield "not-utf8", b"real/\xff\xfe"


def names():
    for i, name in enumerate(
        ["jobs/a.B_9-z/saves/0", "jobs/-", "jobs/a", "", "jobs", "jobs//saves/x", "jobs/a/saves/b/",
         "jobs/" + "x" * 63 + "/saves/" + "y" * 64, "jobs/\u00e9", "jobs/" + "\u20ac" * 66]
    ):
        data = name.encode()
        yield f"name-{i}", bytes([len(data)]) + data
    info = b"\n\x08INTERNAL\x12\x05ckptd"
    detail = b"\n*type.googleapis.com/google.rpc.ErrorInfo\x12" + bytes([len(info)]) + info
    yield "details", b"\0\x08\x05\x12\x04says\x1a" + bytes([len(detail)]) + detail
    yield "bytes", b"\x04\xff\xc3\xed\xa0\x80\xf4\x90\x80\x80\xf0\x9f\x98\x80"
    yield "long", b"\0" + b"\xe2\x82\xac" * 400


class Namespace:
    def __init__(self):
        self.step = 3


def pickles():
    def record(obj, **options):
        """The data.pkl that torch.save writes."""
        buffer = io.BytesIO()
        torch.save(obj, buffer, **options)
        return torch._C.PyTorchFileReader(io.BytesIO(buffer.getvalue())).get_record("data.pkl")

    yield "tensors", record({"w": torch.ones(2, 3), "b": torch.zeros(3), "t": torch.ones(3, 2).t()})
    yield "module", record(torch.nn.Linear(2, 2).state_dict())
    optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
    yield "optimizer", record({"optimizer": optimizer.state_dict(), "epoch": 1, "loss": 0.25})
    shared = [1, 2]
    yield "shared", pickle.dumps([shared, (shared, shared)], protocol=2)
    recursive = []
    recursive.append((recursive, {"self": recursive}))
    yield "recursive", pickle.dumps(recursive, protocol=2)
    numbers = [0, 255, 256, 65535, 65536, -1, 1 << 31, -(1 << 31), 1 << 62, -(1 << 63), 1.5, True]
    yield "numbers", pickle.dumps(numbers, protocol=2)
    yield "texts", pickle.dumps(("", "a", "\u20ac", None), protocol=2)
    yield "ordered", pickle.dumps(collections.OrderedDict(a=1, b=[]), protocol=2)
    yield "object", pickle.dumps(Namespace(), protocol=2)
    state = {"w": torch.nn.Parameter(torch.ones(2)), "v": torch.ones(3)[1:], "n": (1, None)}
    odd = [state, frozenset((b"x",)), {1 << 70}, Namespace()]
    for protocol in (2, 4, 5):
        yield f"protocol-{protocol}", record(odd, pickle_protocol=protocol)
    yield "marks", b"\x80\x02" + b"(" * 20 + b"t" * 20 + b"."
    # Longer than it need be: it is written in fewer bytes, where the sign must be kept.
    yield "long", b"\x80\x02\x8a\x08" + struct.pack("<q", -(1 << 33)) + b"."
    yield "set", b"\x80\x02\x8fq\0K\1\x85q\1h\0\x86."


def zips():
    testdata = pathlib.Path(__file__).parents[1] / "server" / "testdata"
    for file in testdata.glob("*.pt"):
        yield file.stem, file.read_bytes()
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    yield "deflated", deflated.getvalue()


def journal():
    def row(kind, image, save=b"", note=b""):
        return bytes([kind, image, len(save), len(note)]) + save + note

    def save(name, **fields):
        fields = {"backend": "raw", "state": v1.Save.QUEUED, "path": "/f", **fields}
        return v1.Save(name=f"jobs/j/saves/{name}", **fields).SerializeToString()

    # An image is as long as its note: this one has just the length that it plans.
    note = v1.BeginSaveRequest(name="jobs/j/saves/b", path="/f", backend="raw", object_bytes=1)
    while note.object_bytes != note.ByteSize():
        note.object_bytes = note.ByteSize()
    note = note.SerializeToString()
    ended, accepted = 0b0111, 0b1011
    yield "ended", row(ended, 0, save("a"))
    yield "lost", row(accepted, 0, save("a"))
    yield "adopted", row(accepted, 2, save("b"), note) + row(accepted, 3, save("c"), note)
    yield "outside", row(accepted, 5, save("b"), note)
    yield "other-size", row(accepted, 2, save("b"), note + b"\x48\1")
    yield "kept", row(ended, 2, save("b", state=v1.Save.FAILED, image_kept=True), note)
    yield "one-seq-twice", row(0b1001, 2, save("b"), note) + row(0b1001, 3, save("c"), note)


def main():
    out = pathlib.Path(sys.argv[1])
    for target, seeds in {
        "service_fuzz": service, "save_request_fuzz": save_request, "config_fuzz": config,
        "path_fuzz": paths, "name_fuzz": names, "pickle_fuzz": pickles,
        "zip_fuzz": zips, "journal_fuzz": journal,
    }.items():
        (out / target).mkdir(parents=True, exist_ok=True)
        for name, data in seeds():
            (out / target / name).write_bytes(data)


if __name__ == "__main__":
    main()
