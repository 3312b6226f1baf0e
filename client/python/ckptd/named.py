"""Takes a state apart into named tensors, for backends that write those and no pickle.

Nested dicts give names with dots: {"model": {"weight": t}} is the tensor "model.weight". Where to
split the names at dots would not give the same back, the option ckptd.tree tells how they nest:

    leaf          its name
    dict, list... [kind, parts]: parts are an object for "dict" and "OrderedDict", an array for
                  "list" and "tuple"

Tensors that are the same memory, seen in the same way, are saved once: ckptd.aliases has the names of
the others. Numbers, strings, booleans and None are in ckptd.values.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any, Dict, Hashable, List, NoReturn, Optional, Set, Tuple

import torch

from .capture import Captured
from .errors import UnpicklableError
from .structure import ITEM_BYTES, Trace, UnusualError, trace, uncollected
from .v1 import checkpoint_pb2 as pb

# Of those that take a serialized object all are built into the daemon: a plugin never does.
_TAKES_OBJECT = ("torch", "xla", "python")
_ROOT = "data"
_DICTS: Dict[Any, str] = {dict: "dict", OrderedDict: "OrderedDict"}
_SEQUENCES: Dict[Any, str] = {list: "list", tuple: "tuple"}


def takes_names(backend: str) -> bool:
    """Whether a backend takes named tensors, and no object with its storages."""
    return backend not in _TAKES_OBJECT


@dataclass
class Named(Captured):
    """A state as named tensors. Each has a storage of exactly its own bytes, in the order of `specs`."""

    specs: List[pb.TensorSpec] = field(default_factory=list)
    options: Dict[str, str] = field(default_factory=dict)


class LastNamed:
    """The state that was split last: one of the same structure has the same names. Thread-safe."""

    def __init__(self) -> None:
        self._last: Optional[Tuple[List[Any], List[pb.TensorSpec], Dict[str, str]]] = None

    def named(self, found: Trace) -> Optional[Named]:
        """What was traced, split; None if its structure is not that of the last one."""
        if self._last is None:
            return None
        structure, specs, options = self._last
        if found.structure() != structure:
            return None
        storages, dtypes, sizes = found.storages, found.dtypes, found.sizes
        return Named(b"", storages, dtypes, sizes, found.addresses, specs, options)

    def keep(self, found: Trace, named: Named) -> None:
        """Keeps it if its tensors are the storages that were found, one by one."""
        pairs = zip(found.storages, named.storages)
        if len(found.storages) == len(named.storages) and all(a is b for a, b in pairs):
            self._last = found.structure(), named.specs, named.options


def capture_named(obj: Any, path: str, backend: str, last: Optional[LastNamed] = None) -> Named:
    """Splits `obj`; copies no tensor but what has gaps or is on a device that cannot be copied from.

    Raises UnpicklableError that names what no tensor, number, string, boolean or None is.
    """
    with uncollected():
        found = _traced(obj)
        known = last.named(found) if last and found else None
        if known is not None:
            return known
        walk = _Walk(path, backend, _whole_storages(found) if found else {})
        tree = walk.take(obj, ())
    options: Dict[str, Any] = {"ckptd.aliases": walk.aliases, "ckptd.values": walk.values}
    written = {key: _json(value) for key, value in options.items() if value}
    if not walk.splits or not isinstance(obj, dict):
        written["ckptd.tree"] = _json(tree)
    named = walk.named
    named.options = written
    if last and found:
        last.keep(found, named)
    return named


def _traced(obj: Any) -> Optional[Trace]:
    """None for what has tensors on devices, or other parts that are not plain."""
    try:
        return trace(obj)
    except UnusualError:
        return None


def nest(tree: str, leaves: Dict[str, Any]) -> Any:
    """The state whose leaves are `leaves`, as ckptd.tree has it. Raises ValueError, KeyError."""
    return _nested(json.loads(tree), leaves)


def split(leaves: Dict[str, Any]) -> Dict[str, Any]:
    """The nested dicts that the dots in names tell of. Raises ValueError for names that clash."""
    root: Dict[str, Any] = {}
    for name, leaf in leaves.items():
        *steps, last = name.split(".")
        place = root
        for step in steps:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ValueError(f"{name!r} is beneath another name")
        if last in place:
            raise ValueError(f"{name!r} is above another name")
        place[last] = leaf
    return root


def _nested(node: Any, leaves: Dict[str, Any]) -> Any:
    if isinstance(node, str):
        return leaves[node]
    kind, parts = node
    if kind in ("dict", "OrderedDict"):
        items = [(key, _nested(part, leaves)) for key, part in parts.items()]
        return OrderedDict(items) if kind == "OrderedDict" else dict(items)
    if kind not in ("list", "tuple"):
        raise ValueError(f"{kind!r} is no kind of container")
    listed = [_nested(part, leaves) for part in parts]
    return listed if kind == "list" else tuple(listed)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class _Walk:
    def __init__(self, path: str, backend: str, whole: Dict[int, torch.UntypedStorage]) -> None:
        self._path = path
        self._backend = backend
        self._whole = whole
        self._names: Set[str] = set()
        self._open: Set[int] = set()  # containers that the walk is in
        self._kept: Dict[Hashable, str] = {}
        self.named = Named(b"", [], [], [])
        self.aliases: Dict[str, str] = {}
        self.values: Dict[str, Any] = {}
        self.splits = True  # whether dots tell how names nest

    def take(self, obj: Any, steps: tuple[str, ...]) -> Any:
        """Returns the node of `obj` in ckptd.tree."""
        kind = type(obj)
        if kind not in _DICTS and kind not in _SEQUENCES:
            return self._leaf(obj, steps)
        if id(obj) in self._open:
            self._refuse(steps, "is a part of itself")
        self._open.add(id(obj))
        node = self._mapping(obj, steps) if kind in _DICTS else self._sequence(obj, steps)
        self._open.remove(id(obj))
        return node

    def _mapping(self, obj: Dict[Any, Any], steps: tuple[str, ...]) -> Any:
        self.splits &= type(obj) is dict and (bool(obj) or not steps)
        parts = {}
        for key, value in obj.items():
            if type(key) is not str:
                self._refuse(steps, f"has the key {key!r:.80}, which is no string")
            if not _is_text(key):
                self._refuse(steps, f"has the key {key!r:.80}, which UTF-8 cannot hold")
            self.splits &= key != "" and "." not in key
            parts[key] = self.take(value, (*steps, key))
        return [_DICTS[type(obj)], parts]

    def _sequence(self, obj: Any, steps: tuple[str, ...]) -> Any:
        self.splits = False
        parts = [self.take(value, (*steps, str(at))) for at, value in enumerate(obj)]
        return [_SEQUENCES[type(obj)], parts]

    def _leaf(self, obj: Any, steps: tuple[str, ...]) -> str:
        if isinstance(obj, torch.Tensor):
            return self._tensor(obj, steps)
        if obj is not None and type(obj) not in (bool, int, float, str):
            kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
            self._refuse(steps, f"is a {kind}, and no tensor, number, string, boolean or None")
        if isinstance(obj, float) and not math.isfinite(obj):
            self._refuse(steps, f"is {obj}, which has no place in JSON")
        if isinstance(obj, str) and not _is_text(obj):
            self._refuse(steps, "is a string that UTF-8 cannot hold")
        name = self._name(steps)
        self.values[name] = obj
        return name

    def _tensor(self, tensor: torch.Tensor, steps: tuple[str, ...]) -> str:
        storage = self._whole.get(id(tensor))
        if storage is not None:
            return self._add(tensor, id(tensor), storage, steps)
        if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            self._refuse(steps, f"is a {type(tensor).__qualname__}, which is more than its bytes")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            self._refuse(steps, "is a sparse, nested or quantized tensor")
        if tensor.device.type == "meta":
            self._refuse(steps, "is on the device meta, and has no bytes")
        return self._add(tensor, identity_of(tensor), None, steps)

    def _add(
        self,
        tensor: torch.Tensor,
        identity: Hashable,
        storage: Optional[torch.UntypedStorage],
        steps: tuple[str, ...],
    ) -> str:
        """storage: what `bytes_of` gives, if that is known."""
        name = self._name(steps)
        kept = self._kept.setdefault(identity, name)
        if kept != name:
            self.aliases[name] = kept
            return name
        if storage is None:
            storage = bytes_of(tensor)
        dtype = dtype_name(tensor.dtype)
        size = storage.nbytes()
        found = self.named
        found.specs.append(
            pb.TensorSpec(name=name, dtype=dtype, shape=tensor.shape, size_bytes=size)
        )
        found.storages.append(storage)
        found.dtypes.append(tensor.dtype)
        found.sizes.append(size)
        return name

    def _name(self, steps: tuple[str, ...]) -> str:
        wanted = name = ".".join(steps) or _ROOT
        count = 0
        while name in self._names:
            count += 1
            name = f"{wanted}.{count}"
            self.splits = False
        self._names.add(name)
        return name

    def _refuse(self, steps: tuple[str, ...], why: str) -> NoReturn:
        where = "state" + "".join(f"[{step!r:.80}]" for step in steps)
        raise UnpicklableError(
            f"{self._path}: {where} {why}: the backend {self._backend} takes named tensors. Leave it "
            'out, or save with backend="torch".',
            reason="UNPICKLABLE",
            path=self._path,
        )


def _is_text(text: str) -> bool:
    """Whether it goes through Protobuf and a C string."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


@functools.lru_cache(maxsize=None)
def dtype_name(dtype: torch.dtype) -> str:
    """As a TensorSpec has it, such as "float32"."""
    return str(dtype).replace("torch.", "", 1)


def _whole_storages(found: Trace) -> Dict[int, torch.UntypedStorage]:
    """What `bytes_of` gives for tensors that share no memory and have no gaps, by id; it is found by
    functions in C, for all at once."""
    if not found.tensors:
        return {}
    keys, dtypes, offsets, *_ = found.columns
    users = Counter(keys)
    numels = map(torch.Tensor.numel, found.tensors)
    contiguous = map(torch.Tensor.is_contiguous, found.tensors)
    return {
        id(tensor): found.storages[key]
        for tensor, key, dtype, offset, numel, dense in zip(
            found.tensors, keys, dtypes, offsets, numels, contiguous
        )
        if dense
        and offset == 0
        and users[key] == 1
        and numel * ITEM_BYTES[dtype] == found.storages[key].nbytes()
    }


def identity_of(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors that are the same memory, seen in the same way."""
    if tensor.numel() == 0:
        return id(tensor)
    memory = (tensor.untyped_storage()._cdata, tensor.storage_offset())
    view = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
    return (*memory, *view)


def bytes_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    """A storage of the tensor's elements and nothing else; the tensor's own memory if that can be."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.device.type not in ("cpu", "cuda"):
        plain = plain.cpu()
    plain = plain.contiguous()
    storage = plain.untyped_storage()
    start = plain.storage_offset() * plain.element_size()
    size = plain.numel() * plain.element_size()
    if size == 0:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    if (start, size) == (0, storage.nbytes()):
        return storage
    part: torch.UntypedStorage = storage[start : start + size]  # a view
    return part
