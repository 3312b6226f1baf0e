"""Capture against torch.save; needs no daemon."""

from __future__ import annotations

import io
import pickle
import threading
import zipfile

import ckptd
import pytest
import torch
from ckptd.capture import capture
from objects import CASES, Custom


@pytest.mark.parametrize("name", CASES)
def test_capture_equals_torch_save(name):
    state = CASES[name][0]()
    file = io.BytesIO()
    torch.save(state, file)
    archive = zipfile.ZipFile(file)

    captured = capture(state)

    assert bytes(captured.pickle) == archive.read("archive/data.pkl")
    sizes = [archive.getinfo(f"archive/data/{i}").file_size for i in range(len(captured.records))]
    assert [record.size_bytes for record in captured.records] == sizes
    assert captured.image_bytes() >= len(file.getvalue())


def test_capture_copies_no_tensor():
    tensor = torch.arange(10.0)
    (record,) = capture({"a": tensor}).records
    assert record.storage.data_ptr() == tensor.data_ptr()


def test_two_dtypes_of_one_memory_are_refused_as_torch_refuses_them():
    tensor = torch.zeros(4)
    with pytest.raises(RuntimeError, match="view the same data as different types") as caught:
        capture([tensor, tensor.view(torch.int32)])
    assert not isinstance(caught.value, ckptd.SaveError)


class Holder:
    """Has an attribute that cannot be pickled."""

    def __init__(self) -> None:
        self.fine = 1
        self.parts = {"inner": [0, lambda: None]}


@pytest.mark.parametrize(
    "state, where",
    [
        ({"hyper_parameters": {"lr": 1.0, "fn": lambda x: x}}, "state['hyper_parameters']['fn']"),
        ({"a": [1, {"b": (2, threading.Lock())}]}, "state['a'][1]['b'][1]"),
        ({"holder": Holder()}, "state['holder'].parts['inner'][1]"),
        ((i for i in range(3)), "state cannot"),
    ],
)
def test_unpicklable_part_is_named(state, where):
    with pytest.raises(ckptd.UnpicklableError) as caught:
        capture(state, "/data/last.ckpt")
    assert isinstance(caught.value, (ckptd.SaveError, pickle.PicklingError))
    assert str(caught.value).startswith("/data/last.ckpt: ")
    assert where in str(caught.value)
    assert caught.value.reason == "UNPICKLABLE"
    assert caught.value.path == "/data/last.ckpt"


def test_error_of_the_users_own_pickling_is_passed_on():
    class Stubborn(Custom):
        def __reduce__(self):
            raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        capture({"stubborn": Stubborn()})
