"""The real package `safetensors`: it reads what the backend writes, and its files are loaded."""

from __future__ import annotations

import ckptd
import objects
import pytest
import safetensors
import safetensors.torch
import torch


def save(client, state, path):
    client.save(state, path, backend="safetensors").result()
    return path


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert objects.bits(found[name]) == objects.bits(tensor.contiguous()), name


def storable():
    """What the format has a name for, each with a name of its own."""
    tensors = objects.dtypes()
    del tensors["torch.complex128"]
    return {name.replace(".", "_"): tensor for name, tensor in tensors.items()}


def test_every_dtype(client, tmp_path):
    path = save(client, storable(), tmp_path / "a")
    assert_equal(safetensors.torch.load_file(path), storable())
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(storable())
        assert file.metadata()["format"] == "pt"
        for name, tensor in storable().items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_what_it_has_no_name_for_is_refused_by_name(client, tmp_path):
    with pytest.raises(ckptd.SaveError, match="wide.*complex128"):
        save(client, {"wide": torch.ones(2, dtype=torch.complex128)}, tmp_path / "a")


def test_shapes_and_parts(client, tmp_path):
    state = {
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 7),
        "matrix": torch.arange(60.0).view(6, 10),
        "transposed": torch.arange(12.0).view(3, 4).t(),
        "größe 重み": torch.arange(3, dtype=torch.uint8),
    }
    path = save(client, state, tmp_path / "a")
    assert_equal(safetensors.torch.load_file(path), state)
    with safetensors.safe_open(path, framework="pt") as file:
        part = file.get_slice("matrix")
        assert part.get_shape() == [6, 10]
        assert torch.equal(part[2:4, 1:], state["matrix"][2:4, 1:])


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.output = torch.nn.Linear(3, 5)
        self.output.weight = self.embedding.weight


def test_load_model_finds_tied_weights(client, tmp_path):
    """By the metadata, in which it looks for the names that it misses."""
    model, other = Tied(), Tied()
    path = save(client, model.state_dict(), tmp_path / "a")
    missing, unexpected = safetensors.torch.load_model(other, path)
    assert (list(missing), list(unexpected)) == ([], [])
    assert_equal(other.state_dict(), model.state_dict())


def test_empty(client, tmp_path):
    assert safetensors.torch.load_file(save(client, {}, tmp_path / "a")) == {}


@pytest.mark.parametrize("lend", [True, False])
def test_its_files_are_loaded(client, tmp_path, lend):
    path = tmp_path / "a"
    safetensors.torch.save_file(storable(), path, metadata={"format": "pt"})
    assert_equal(client.load(path, lend=lend), storable())
    ckptd.verify(path)


def test_its_tied_weights_are_loaded(client, tmp_path):
    model = Tied()
    safetensors.torch.save_model(model, str(tmp_path / "a"))
    loaded = client.load(tmp_path / "a")
    assert_equal(loaded, model.state_dict())
    assert loaded["output.weight"] is loaded["embedding.weight"]
