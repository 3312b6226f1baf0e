"""The plugin for XLA strategies, which insist on a class of their own."""

from __future__ import annotations

import copy
import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Dict, List, Tuple

import torch

from .io import SidecarCheckpointIO
from .packages import FABRIC, classes

_Bases = classes(FABRIC, "plugins.io.xla", "XLACheckpointIO")

# Kept as they are: a copy would be the same object, and what they hold is not the checkpoint's.
_LEAVES = (
    torch.Tensor,
    torch.UntypedStorage,
    torch.TypedStorage,
    type,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    ModuleType,
)


class XLASidecarCheckpointIO(SidecarCheckpointIO, *_Bases):  # type: ignore[misc]
    """SidecarCheckpointIO for strategies that take nothing but an XLACheckpointIO.

    Arguments and behaviour are those of SidecarCheckpointIO; the file is what XLACheckpointIO
    writes: see `to_cpu`. Needs torch_xla only where a checkpoint has XLA tensors.
    """

    def _prepare(self, checkpoint: Dict[str, Any]) -> Any:
        return to_cpu(checkpoint)


def to_cpu(value: Any) -> Any:
    """`value` as XLACheckpointIO writes it; `value` itself is left as it is.

    XLA tensors come to the CPU, all in one transfer; one that occurs twice stays one. Parameters
    come, too, and stay parameters: XLACheckpointIO leaves them bound to their device. A dict of any
    kind becomes a dict, a tuple a list, a configuration of OmegaConf plain containers; an object
    with attributes is copied, and they are treated the same. Classes, functions and modules stay.
    """
    reducer = _Reducer()
    reduced = reducer.reduce(value)
    reducer.fetch()
    return reduced


class _Reducer:
    """One walk over a checkpoint, as `xm._maybe_convert_to_cpu` makes it."""

    def __init__(self) -> None:
        # What each object became, with the object: its id must not become another's meanwhile.
        self._done: Dict[int, Tuple[Any, Any]] = {}
        self._on_device: List[torch.Tensor] = []
        self._on_cpu: List[torch.Tensor] = []

    def reduce(self, value: Any) -> Any:
        """`value` reduced, with XLA tensors that are still empty."""
        known = self._done.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, torch.Tensor) and value.device.type == "xla":
            return self._note(value, self._promise(value))
        if isinstance(value, _LEAVES):
            return value
        if isinstance(value, _configurations()):
            plain = sys.modules["omegaconf"].OmegaConf.to_container(value)
            return self._note(value, self.reduce(plain))
        if isinstance(value, dict):
            into: Dict[Any, Any] = self._note(value, {})
            for key, item in value.items():
                into[self.reduce(key)] = self.reduce(item)
            return into
        if isinstance(value, (list, tuple)):
            items: List[Any] = self._note(value, [])
            items.extend(self.reduce(item) for item in value)
            return items
        if isinstance(value, set):
            return self._note(value, {self.reduce(item) for item in value})
        return self._attributes(value) if hasattr(value, "__dict__") else value

    def fetch(self) -> None:
        """Fills the tensors that were on XLA devices."""
        if not self._on_device:
            return
        import torch_xla.core.xla_model as xm

        for promised, tensor in zip(self._on_cpu, xm._maybe_convert_to_cpu(self._on_device)):
            promised.data = tensor

    def _promise(self, tensor: torch.Tensor) -> torch.Tensor:
        empty = torch.empty(0, dtype=tensor.dtype)
        if isinstance(tensor, torch.nn.Parameter):
            empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
        else:
            empty.requires_grad_(tensor.requires_grad)
        self._on_device.append(tensor.detach())
        self._on_cpu.append(empty)
        return empty

    def _attributes(self, value: Any) -> Any:
        try:
            reduced = copy.copy(value)
        except Exception:  # noqa: BLE001 - what cannot be copied may still be pickled
            return value
        self._note(value, reduced)
        if reduced is not value:
            for name, item in list(reduced.__dict__.items()):
                reduced.__dict__[name] = self.reduce(item)
        return reduced

    def _note(self, value: Any, reduced: Any) -> Any:
        self._done[id(value)] = (value, reduced)
        return reduced


def _configurations() -> Tuple[type, ...]:
    """OmegaConf's classes, if a checkpoint can hold any."""
    omegaconf = sys.modules.get("omegaconf")
    return (omegaconf.DictConfig, omegaconf.ListConfig) if omegaconf is not None else ()
