"""The backend "xla-xser": checkpoints as torch_xla.utils.serialization saves and loads them.

At the path lies a torch file of the object, with a TensorReference in place of each tensor; in the
folder PATH.tensors lies a torch file for each, tensor_TID.pt. torch_xla is not needed for it: its class
is known here by its name. The daemon writes the files and removes them (plugins/xser); what reads them
is here, while the daemon lets nothing else happen to the path.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import types
import zipfile
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import torch

from .capture import StoragePickler, by_pickle
from .errors import CorruptCheckpointError
from .named import Named, bytes_of, dtype_name, identity_of
from .v1 import checkpoint_pb2 as pb
from .verify import check

BACKEND = "xla-xser"
_FOLDER = ".tensors"
_MODULE, _NAME = "torch_xla.utils.serialization", "TensorReference"
_THEIRS = f"c{_MODULE}\n{_NAME}\n".encode()
_OURS = f"c{__name__}\n{_NAME}\n".encode()
# Numbers of checkpoints, and of tensors in each: no two that meet at a path have the same.
_CHECKPOINTS, _TENSORS = 10**11, 10**7
# What they hold is not the checkpoint's.
_CLOSED = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)


class TensorReference:
    """Stands for a tensor while it is pickled."""

    def __init__(self, tid: int) -> None:
        self.tid = tid


class _Pickler(StoragePickler):
    """Pickles references in place of the tensors whose numbers it is given, by id."""

    def __init__(self, out: Any, tids: Dict[int, int]) -> None:
        super().__init__(out)
        self._tids = tids

    def reducer_override(self, obj: Any) -> Any:
        """The reference to a tensor that has a number."""
        tid = self._tids.get(id(obj))
        return NotImplemented if tid is None else (TensorReference, (tid,))


def capture(obj: Any, path: str) -> Named:
    """Splits `obj` into what plugins/xser takes; copies what `named.bytes_of` does.

    Tensors are named wherever torch_xla looks for them: in dicts, lists, tuples and sets, and in
    attributes. One that is in several places, or that is the same memory seen in the same way, is one
    file. Others, and what is no plain tensor, stay in the object. Raises UnpicklableError.
    """
    tids: Dict[int, int] = {}
    kept: Dict[Any, int] = {}
    tensors: List[torch.Tensor] = []
    kinds: List[str] = []
    first = secrets.randbelow(_CHECKPOINTS) * _TENSORS
    for tensor in _tensors_in(obj):
        kind = _kind(tensor)
        number = kept.setdefault((identity_of(tensor), kind), len(tensors))
        if number == len(tensors):
            tensors.append(tensor)
            kinds.append(kind)
        tids[id(tensor)] = first + number
    captured = by_pickle(obj, path, lambda out: _Pickler(out, tids))
    pickled = captured.pickle
    if tensors:
        if pickled.count(_OURS) != 1:
            raise ValueError(f"{path}: the state holds the bytes by which references are told.")
        pickled = pickled.replace(_OURS, _THEIRS)
    named = Named(b"", [], [], [])
    _add(named, "object", pickled)
    for key, storage in enumerate(captured.storages):
        _add(named, f"data/{key}", storage, size=captured.sizes[key])
    for number, tensor in enumerate(tensors):
        _add(named, f"tensor_{first + number}.pt", bytes_of(tensor), dtype_name(tensor.dtype), tensor)
    named.options["metadata.xser.kinds"] = "".join(kinds)
    return named


def refers(path: str) -> bool:
    """Whether the file at `path` is one whose tensors lie in a folder beside it."""
    if not os.path.isdir(path + _FOLDER):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(_THEIRS in archive.read(name) for name in names[:1])
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return False


def load(path: str, map_location: Any, weights_only: Optional[bool], verify: bool) -> Any:
    """The checkpoint at `path`; its containers are of the kinds that were saved.

    Arguments are those of Client.load. Raises FileNotFoundError, CorruptCheckpointError, and what
    torch.load raises.
    """
    loaded: Dict[int, torch.Tensor] = {}

    def tensor(tid: Any) -> torch.Tensor:
        if type(tid) is not int or tid < 0:
            raise CorruptCheckpointError(
                f"{path}: refers to the tensor {tid!r:.80}, which is no number.", path=path
            )
        if tid not in loaded:
            file = os.path.join(path + _FOLDER, f"tensor_{tid}.pt")
            if not os.path.exists(file):
                raise CorruptCheckpointError(
                    f"{path}: is corrupt: its tensor {file} is missing. Load an older checkpoint.",
                    path=path,
                )
            if verify:
                check(file, file)
            loaded[tid] = torch.load(file, map_location=map_location, weights_only=weights_only)
        return loaded[tid]

    if verify:
        check(path, path)
    reference, unfilled = _reference_class(tensor)
    only_weights = weights_only
    if weights_only is None:
        only_weights = hasattr(torch.serialization, "_default_to_weights_only")
    if only_weights:
        with torch.serialization.safe_globals([reference]):
            tree = torch.load(path, map_location=map_location, weights_only=True)
    else:
        tree = torch.load(
            path,
            map_location=map_location,
            weights_only=False,
            pickle_module=_pickle_with(reference),
        )
    return _Filling(reference, tensor).fill(tree) if unfilled else tree


def _reference_class(tensor: Callable[[Any], torch.Tensor]) -> Tuple[type, List[Any]]:
    """A class that unpickles as the tensor itself, and those that could not, as torch_xla writes."""
    unfilled: List[Any] = []

    def new(cls: type, *tid: Any) -> Any:
        if tid:
            return tensor(*tid)
        made: Any = object.__new__(cls)
        unfilled.append(made)
        return made

    return type(_NAME, (), {"__module__": _MODULE, "__new__": new}), unfilled


def _pickle_with(reference: type) -> Any:
    """A module like pickle that knows the class."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            if (module, name) == (_MODULE, _NAME):
                return reference
            return super().find_class(module, name)

    module = types.ModuleType("pickle")
    module.__dict__.update(pickle.__dict__)
    module.__dict__["Unpickler"] = Unpickler
    return module


class _Filling:
    """Puts tensors where references are, in place where that can be."""

    def __init__(self, reference: type, tensor: Callable[[Any], torch.Tensor]) -> None:
        self._reference = reference
        self._tensor = tensor
        self._done: Dict[int, Any] = {}

    def fill(self, value: Any) -> Any:
        """`value`, or what takes its place."""
        if isinstance(value, self._reference):
            return self._tensor(vars(value).get("tid"))
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, (torch.Tensor, *_CLOSED)):
            return value
        if isinstance(value, tuple):
            items = [self.fill(item) for item in value]
            kept = all(new is old for new, old in zip(items, value))
            return value if kept or type(value) is not tuple else tuple(items)
        self._done[id(value)] = value
        if isinstance(value, dict):
            for key, item in list(value.items()):
                value[key] = self.fill(item)
        elif isinstance(value, list):
            value[:] = [self.fill(item) for item in value]
        elif isinstance(value, set):
            items = [self.fill(item) for item in value]
            value.clear()
            value.update(items)
        elif hasattr(value, "__dict__"):
            self.fill(vars(value))
        return value


def _tensors_in(obj: Any) -> Iterator[torch.Tensor]:
    """The plain tensors where torch_xla looks for them, in its order."""
    seen: Set[int] = set()
    left = [obj]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, *_CLOSED)):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if _is_plain(value):
                yield value
        elif isinstance(value, dict):
            left.extend(item for pair in reversed(list(value.items())) for item in reversed(pair))
        elif isinstance(value, (list, tuple, set)):
            left.extend(reversed(list(value)))
        elif not torch.is_storage(value):
            with contextlib.suppress(TypeError):
                left.extend(reversed(list(vars(value).values())))


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not (tensor.is_quantized or tensor.is_nested or vars(tensor))
    )


def _kind(tensor: torch.Tensor) -> str:
    """Of a plain tensor."""
    if type(tensor) is torch.nn.Parameter:
        return "p" if tensor.requires_grad else "q"
    return "g" if tensor.requires_grad else "t"


def _add(
    named: Named,
    name: str,
    content: Any,
    dtype: str = "uint8",
    tensor: Optional[torch.Tensor] = None,
    size: Optional[int] = None,
) -> None:
    """Adds a tensor to a save, or bytes, or a storage."""
    if isinstance(content, bytes):
        content = torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()
    size = content.nbytes() if size is None else size
    shape = [size] if tensor is None else tensor.shape
    named.specs.append(pb.TensorSpec(name=name, dtype=dtype, shape=shape, size_bytes=size))
    named.storages.append(content)
    named.dtypes.append(torch.uint8 if tensor is None else tensor.dtype)
    named.sizes.append(size)
