"""What is saved, when, in which order, against a real daemon."""

from __future__ import annotations

import io
import os
import stat
import threading
import zipfile

import numpy as np
import pytest
import torch
from ckptd.v1 import checkpoint_pb2 as pb
from harness import WAIT_SECONDS, wait_until
from objects import CASES, lightning_like, same


def records(path_or_file):
    """Names, sizes and checksums of the records of a checkpoint."""
    archive = zipfile.ZipFile(path_or_file)
    assert archive.testzip() is None
    return {info.filename.split("/", 1)[1]: (info.file_size, info.CRC) for info in archive.filelist}


SLOW = ("many_tensors", "grpc")  # and no different from many_tensors by "shm"


@pytest.mark.parametrize(
    "name, transport",
    [(name, way) for name in CASES for way in ("shm", "grpc") if (name, way) != SLOW],
)
def test_file_is_what_torch_save_writes(name, transport, daemon, tmp_path):
    make, weights_only_takes_it = CASES[name]
    state = make()
    path = tmp_path / "new" / "folder" / f"{name}.ckpt"

    save = daemon.client(transport=transport).save(state, path)
    save.result()

    expected = io.BytesIO()
    torch.save(state, expected)
    found, wanted = records(path), records(expected)
    serial = ".data/serialization_id"  # a hash of torch's own
    assert found.pop(serial)[0] == wanted.pop(serial)[0]
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        # Which does not write them yet, and sorts storages by name.
        del found[".format_version"], found[".storage_alignment"]
        wanted = {name: wanted[name] for name in found}
    assert found == wanted
    assert list(found) == list(wanted)
    for mmap in (False, True):
        for weights_only in (False, True)[: 1 + weights_only_takes_it]:
            loaded = torch.load(path, mmap=mmap, weights_only=weights_only)
            assert same(state, loaded)
    again = daemon.client(transport=transport).load(path, weights_only=False)
    assert same(state, again)


def test_aliases_stay_aliases(client, tmp_path):
    state = CASES["tied_and_views"][0]()
    client.save(state, tmp_path / "a.ckpt")
    loaded = client.load(tmp_path / "a.ckpt")
    assert loaded["tied"][0] is loaded["tied"][1]
    loaded["base"][10] = -1
    assert loaded["slice"][0] == -1 and loaded["square"][0, 1] == -1
    assert loaded["alias"].data_ptr() == loaded["tied"][0].data_ptr()


def test_files_load_where_ckptd_is_unknown(client, tmp_path, run_python):
    state = lightning_like()
    client.save(state, tmp_path / "a.ckpt").result()
    torch.save(state, tmp_path / "b.ckpt")
    run_python(
        """
        import sys, torch
        for mmap in (False, True):
            for weights_only in (False, True):
                a, b = (torch.load(p, mmap=mmap, weights_only=weights_only) for p in sys.argv[1:])
                assert str(a) == str(b)
                assert all(torch.equal(a["state_dict"][k], v) for k, v in b["state_dict"].items())
        assert not any(name.startswith("ckptd") for name in sys.modules)
        """,
        tmp_path / "a.ckpt",
        tmp_path / "b.ckpt",
    )


def test_large_tensors_use_all_threads(client, tmp_path):
    state = {"big": torch.arange(20_000_000, dtype=torch.int32), "rest": torch.arange(5_000_000.0)}
    for path in (tmp_path / "a.ckpt", tmp_path / "b.ckpt"):
        client.save(state, path)
        assert same(state, client.load(path))


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_changes_after_save_returned_do_not_reach_the_file(daemon, tmp_path, transport):
    client = daemon.client(transport=transport)
    state = {
        "tensor": torch.ones(3_000_000),
        "array": np.ones(10),
        "list": [1, 2],
        "dict": {"a": torch.zeros(2)},
    }
    save = client.save(state, tmp_path / "a.ckpt")
    state["tensor"].fill_(7)
    state["array"].fill(7)
    state["list"].append(3)
    state["dict"]["a"].fill_(7)
    state["dict"]["b"] = 1
    save.result()
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert torch.equal(loaded["tensor"], torch.ones(3_000_000))
    assert np.array_equal(loaded["array"], np.ones(10))
    assert loaded["list"] == [1, 2]
    assert same(loaded["dict"], {"a": torch.zeros(2)})


def test_saves_back_to_back(client, tmp_path):
    state = {"x": torch.zeros(500_000)}
    saves = []
    for i in range(5):
        state["x"].fill_(i)
        saves.append(client.save(state, tmp_path / f"{i}.ckpt"))
        saves.append(client.save(state, tmp_path / "last.ckpt"))
        # Ordered by the daemon: what is loaded is what was saved last.
        assert client.load(tmp_path / "last.ckpt")["x"][0] == i
    for save in saves:
        save.result()
        assert save.state == "SUCCEEDED" and save.done() and save.exception() is None
    assert [torch.load(tmp_path / f"{i}.ckpt")["x"][0].item() for i in range(5)] == [0, 1, 2, 3, 4]
    assert torch.load(tmp_path / "last.ckpt")["x"][0] == 4


def test_load_waits_for_a_pending_save_of_another_process(client, daemon, tmp_path, run_python):
    path = tmp_path / "a.ckpt"
    for value in (1, 2):
        client.save({"x": torch.full((4_000_000,), value)}, path)
    out = run_python("import ckptd, sys; print(int(ckptd.load(sys.argv[1])['x'].unique()))", path)
    assert out.stdout.split() == ["2"]
    assert daemon.client().load(path)["x"][0] == 2


def test_save_remove_leaves_nothing(client, tmp_path):
    for wait in (True, False):
        client.save({"x": torch.zeros(1_000_000)}, tmp_path / "a.ckpt")
        client.remove(tmp_path / "a.ckpt", wait=wait)
        if not wait:
            client.flush()
        assert os.listdir(tmp_path) == []
    client.remove(tmp_path / "a.ckpt")  # a missing path is no error


def test_remove_takes_folders_and_links_alone(client, tmp_path):
    (tmp_path / "sharded" / "sub").mkdir(parents=True)
    (tmp_path / "sharded" / "sub" / "meta.pt").write_bytes(b"x")
    (tmp_path / "kept").write_bytes(b"x")
    (tmp_path / "link").symlink_to("kept")
    client.remove(tmp_path / "sharded")
    client.remove(tmp_path / "link")
    assert os.listdir(tmp_path) == ["kept"]


def test_missing_file(client, tmp_path):
    path = tmp_path / "none.ckpt"
    with pytest.raises(FileNotFoundError, match=f"^Checkpoint file not found: {path}"):
        client.load(path)


def test_weights_only_and_map_location_are_passed_on(client, tmp_path):
    client.save(CASES["arrays_and_classes"][0](), tmp_path / "a.ckpt")
    for weights_only in (None, True):
        with pytest.raises(Exception, match="[Ww]eights"):
            client.load(tmp_path / "a.ckpt", weights_only=weights_only)
    client.save({"x": torch.ones(2)}, tmp_path / "b.ckpt")
    assert client.load(tmp_path / "b.ckpt", map_location="meta")["x"].device.type == "meta"


def test_relative_paths_and_strings(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save = client.save({"x": 1}, "sub/a.ckpt")
    assert save.path == f"{tmp_path}/sub/a.ckpt"
    assert client.load("sub/a.ckpt") == {"x": 1}


def test_file_mode_follows_the_umask(client, tmp_path):
    old = os.umask(0o027)
    try:
        client.save({"x": 1}, tmp_path / "sub" / "a.ckpt").result()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "sub" / "a.ckpt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "sub").stat().st_mode) == 0o750


def test_listings_show_final_names_only(client, tmp_path):
    seen, stop = set(), threading.Event()

    def poll():
        while not stop.is_set():
            seen.update(os.listdir(tmp_path))

    poller = threading.Thread(target=poll)
    poller.start()
    state = {"x": torch.zeros(100_000)}
    names = [f"step={i}.ckpt" for i in range(50)]
    try:
        for name in names:
            client.save(state, tmp_path / name)
        client.flush()
    finally:
        stop.set()
        poller.join()
    assert seen <= set(names)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_threads_save_at_the_same_time(client, tmp_path):
    def run(index):
        for step in range(5):
            state = {"x": torch.full((200_000,), index * 10 + step)}
            client.save(state, tmp_path / f"{index}.ckpt")

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert set(client.load(tmp_path / f"{i}.ckpt")["x"].unique().tolist()) == {i * 10 + 4}


def test_reserve_counts_images(client):
    assert client.reserve(10 << 20, images=2, wait=True) >= 2
    assert client.reserve({"x": torch.zeros(1000)}, images=1) >= 1


def test_save_is_known_by_its_name(client, daemon, tmp_path):
    save = client.save({"x": torch.ones(3)}, tmp_path / "a.ckpt")
    save.result()
    known = daemon.call("GetSave", pb.GetSaveRequest(name=save.name))
    assert known.name.startswith(f"jobs/{client.job}/saves/")
    assert (known.state, known.path, known.tensor_count) == (pb.Save.SUCCEEDED, save.path, 1)
    assert str(os.getpid()) in known.client
    assert "SUCCEEDED" in repr(save)


def test_session_ends_with_the_last_client(make_daemon, tmp_path):
    daemon = make_daemon()
    one, two = daemon.client(), daemon.client()
    one.save({"x": 1}, tmp_path / "a.ckpt")
    two.save({"x": 2}, tmp_path / "a.ckpt")
    assert daemon.status().session_count == 1
    one.close()
    assert daemon.status().session_count == 1
    two.close()
    wait_until(lambda: daemon.status().session_count == 0, "the session to end", WAIT_SECONDS)
    assert one.load(tmp_path / "a.ckpt") == {"x": 2}


@pytest.mark.skipif(
    "CKPTD_TEST_LARGE" not in os.environ, reason="needs 12 GB of memory and a minute"
)
def test_tensor_of_more_than_4_gib(make_daemon, tmp_path):
    daemon = make_daemon("--staging-budget", "5GiB")
    elements = (1 << 32) + 16
    state = {"big": torch.zeros(elements, dtype=torch.uint8), "after": torch.arange(5)}
    state["big"][-1] = 7
    path = tmp_path / "a.ckpt"
    daemon.client().save(state, path).result()
    del state
    assert records(path)["data/0"][0] == elements
    for weights_only in (False, True):
        loaded = torch.load(path, mmap=True, weights_only=weights_only)
        assert loaded["big"].shape == (elements,)
        assert loaded["big"][-2:].tolist() == [0, 7]
        assert loaded["after"].tolist() == [0, 1, 2, 3, 4]
