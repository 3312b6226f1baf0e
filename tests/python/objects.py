"""Objects to save, and how to compare them."""

from __future__ import annotations

import collections
import math

import numpy as np
import torch


class Custom:
    """A class of the user's, which weights_only refuses."""

    def __init__(self) -> None:
        self.values = np.arange(5)
        self.tensor = torch.arange(4.0)

    def __eq__(self, other) -> bool:
        return same(vars(self), vars(other))


def trained_adam():
    """A small model and its Adam after one step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(torch.randn(8, 20)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def lightning_like():
    """What Trainer.dump_checkpoint makes, in small."""
    model, optimizer = trained_adam()
    return {
        "epoch": 3,
        "global_step": 123,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{}": {"kth_value": torch.tensor(math.inf), "best": "é/x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.001]}],
        "hyper_parameters": {"lr": 1e-3, "layers": (20, 30, 5), "flag": True, "none": None},
    }


def tied_and_views():
    """Aliases in every form: the same tensor twice, views, a Parameter of a storage."""
    base = torch.arange(100.0)
    weight = torch.nn.Parameter(torch.randn(4, 5))
    return {
        "base": base,
        "again": base,
        "slice": base[10:20],
        "strided": base[::3],
        "square": base.view(10, 10).t(),
        "tied": [weight, weight],
        "alias": weight.detach(),
    }


def dtypes():
    """One tensor of each dtype that a checkpoint meets."""
    names = (
        "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 "
        "uint16 uint32 uint64 bool complex64 complex128"
    ).split()
    found = [getattr(torch, name) for name in names if hasattr(torch, name)]
    values = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    return {str(dtype): values.to(dtype) for dtype in found}


def shapes():
    """Tensors of unusual shape and layout."""
    return {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0),
        "empty_2d": torch.empty(0, 7),
        "one": torch.ones(1),
        "odd": torch.arange(7, dtype=torch.uint8),
        "transposed": torch.arange(12.0).view(3, 4).t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.ones(1, 5).expand(3, 5),
        "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
        "sparse": torch.eye(4).to_sparse(),
        "no_tensor_twice": [torch.zeros(3), torch.zeros(3)],
    }


def arrays_and_classes():
    """What only weights_only=False loads."""
    return {
        "array": np.arange(1000.0).reshape(10, 100),
        "scalar": np.float32(2.5),
        "custom": Custom(),
        "nested": {"set": {1, 2, 3}, "bytes": b"\x00\xff", "big": 10**30, "range": range(3)},
    }


def ordered_state_dict():
    """A bare state dict, with the `_metadata` attribute that modules need."""
    return trained_adam()[0].state_dict()


def many_tensors():
    """20 000 small tensors."""
    return {f"layer.{i}.weight": torch.full((3,), float(i)) for i in range(20_000)}


#: name -> (maker, whether torch.load(weights_only=True) takes it)
CASES = {
    "lightning": (lightning_like, True),
    "adam": (lambda: trained_adam()[1].state_dict(), True),
    "tied_and_views": (tied_and_views, True),
    "dtypes": (dtypes, True),
    "shapes": (shapes, True),
    "arrays_and_classes": (arrays_and_classes, False),
    "ordered_state_dict": (ordered_state_dict, True),
    "many_tensors": (many_tensors, True),
    "tensor": (lambda: torch.arange(3.0), True),
    "no_tensor": (lambda: {"a": [1, "b", None, 2.5]}, True),
}


def same(a, b) -> bool:
    """Whether two objects are equal bit for bit, types and aliasing of tensors included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.is_sparse:
            return same(a.coalesce().indices(), b.coalesce().indices()) and same(
                a.coalesce().values(), b.coalesce().values()
            )
        return (a.dtype, a.shape, a.stride(), a.requires_grad, a.is_conj()) == (
            b.dtype,
            b.shape,
            b.stride(),
            b.requires_grad,
            b.is_conj(),
        ) and bits(a) == bits(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        metadata = getattr(a, "_metadata", None) == getattr(b, "_metadata", None)
        return metadata and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple, collections.deque)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def bits(tensor: torch.Tensor) -> bytes:
    """The whole storage under a tensor, as bytes."""
    storage = tensor.detach().untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()


def assert_same_tree(found, wanted, assert_same_tensor):
    """Types, order of keys, and what is in them; tensors as `assert_same_tensor` compares them."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same_tree(found[key], wanted[key], assert_same_tensor)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted):
            assert_same_tree(one, other, assert_same_tensor)
    elif isinstance(wanted, torch.Tensor):
        assert_same_tensor(found, wanted)
    else:
        assert found == wanted
