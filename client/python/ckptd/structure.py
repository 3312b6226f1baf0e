"""What the bytes of data.pkl depend on, for plain states.

A state dict is dicts, lists, numbers, strings and tensors. `trace` walks such an object once and
writes down, in flat lists, all that its pickle depends on: types, order, values, which object
stands in several places, and of each tensor its storage, dtype, offset, shape, stride and
requires_grad. pickle_writer.py makes the pickle from those lists and from nothing else. So two
objects with equal lists have the same pickle. Any other object raises UnusualError.
"""

from __future__ import annotations

import gc
import itertools
import operator
import struct
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

import torch
from torch.serialization import location_tag

STORAGE_TYPES = {
    torch.float32: b"FloatStorage",
    torch.float64: b"DoubleStorage",
    torch.float16: b"HalfStorage",
    torch.bfloat16: b"BFloat16Storage",
    torch.int64: b"LongStorage",
    torch.int32: b"IntStorage",
    torch.int16: b"ShortStorage",
    torch.int8: b"CharStorage",
    torch.uint8: b"ByteStorage",
    torch.bool: b"BoolStorage",
}
# Strings that torch puts into the pickle itself, as these very objects.
_TORCH_STRINGS = frozenset(["storage", "cpu"])
ITEM_BYTES = {dtype: torch.empty(0, dtype=dtype).element_size() for dtype in STORAGE_TYPES}
_MIN_BULK = 8


class Mark:
    """Equal only to itself."""

    def __init__(self, pickled: bytes = b"") -> None:
        self.pickled = pickled


NONE, TRUE, FALSE = Mark(b"N"), Mark(b"\x88"), Mark(b"\x89")
INT, FLOAT, DICT, ORDERED, LIST, TUPLE, TENSOR = (Mark() for _ in range(7))
_SINGLE = {None: NONE, True: TRUE, False: FALSE}

_pack_double = struct.Struct(">d").pack


class UnusualError(Exception):
    """An object that only pickle knows how to take apart."""


class Trace:
    """What `trace` finds: marks and tensors, and the storages in the order of their keys."""

    def __init__(self) -> None:
        # Read from front to back. A str: a new one. An int: the object that was the n-th new one.
        # TENSOR: the next tensor. Another Mark is followed by its value or length; a container's
        # length by whether it holds strings and new tensors only, of which only the strings follow.
        self.marks: List[Any] = []
        self.tensors: List[torch.Tensor] = []
        # Of each tensor: key of its storage, dtype, offset, shape, stride, requires_grad.
        self.columns: List[List[Any]] = []
        # Of each storage.
        self.storages: List[torch.UntypedStorage] = []
        self.addresses: List[int] = []
        self.sizes: List[int] = []  # what readers expect, which may be less than nbytes()
        self.dtypes: List[torch.dtype] = []

    def of_tensors(self) -> List[Any]:
        """What the pickle depends on beside the marks, to be compared."""
        return [self.columns, self.sizes]

    def structure(self) -> List[Any]:
        """All that the pickle depends on, to be compared."""
        return [self.marks, *self.of_tensors()]


def trace(obj: Any) -> Trace:
    """Walks `obj`, copying nothing. Raises UnusualError."""
    found = Trace()
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise UnusualError("a torch mode is on")
    try:
        with uncollected():
            _Walk(found).value(obj)
            _describe(found)
    except (RuntimeError, RecursionError, NotImplementedError) as error:
        raise UnusualError(str(error)) from error
    return found


@contextmanager
def uncollected() -> Iterator[None]:
    """Keeps the garbage collector from looking, again and again, at what is made and all kept."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _describe(found: Trace) -> None:
    """Fills in the columns: by functions in C, each for all tensors at once."""
    tensors = found.tensors

    def column(name: str) -> List[Any]:
        return list(map(operator.attrgetter(name), tensors))

    dtypes, grads = column("dtype"), column("requires_grad")
    plain = (
        all(column("is_cpu"))
        and set(column("layout")) <= {torch.strided}
        and STORAGE_TYPES.keys() >= set(dtypes)
        and not any(map(torch.Tensor.is_neg, tensors))
        and not any(column("is_nested"))
        and not any(column("__dict__"))
        and not (any(grads) and any(column("_backward_hooks")))
    )
    if not plain:
        raise UnusualError("a tensor of its own kind")
    storages = list(map(torch.Tensor.untyped_storage, tensors))
    keys: List[int] = list(range(len(tensors)))
    found.storages, found.dtypes = storages, dtypes
    identities = list(map(operator.attrgetter("_cdata"), storages))
    if len(set(identities)) < len(identities):
        firsts: Dict[int, int] = {}
        keys = [firsts.setdefault(identity, len(firsts)) for identity in identities]
        first_of = {key: place for place, key in reversed(list(enumerate(keys)))}
        places = [first_of[key] for key in range(len(firsts))]
        found.storages = [storages[place] for place in places]
        found.dtypes = [dtypes[place] for place in places]
        if any(found.dtypes[key] is not dtype for key, dtype in zip(keys, dtypes)):
            raise UnusualError("a storage of two dtypes, which torch refuses")
    found.addresses = list(map(torch.UntypedStorage.data_ptr, found.storages))
    if len(set(found.addresses)) < len(found.addresses):
        used = [address for address in found.addresses if address]
        if len(set(used)) < len(used):
            raise UnusualError("two storages of one memory")  # of two dtypes, perhaps
    sizes = map(torch.UntypedStorage.nbytes, found.storages)
    found.sizes = [size - size % ITEM_BYTES[dtype] for size, dtype in zip(sizes, found.dtypes)]
    offsets = list(map(torch.Tensor.storage_offset, tensors))
    strides = list(map(torch.Tensor.stride, tensors))
    found.columns = [keys, dtypes, offsets, column("shape"), strides, grads]
    if found.storages and location_tag(found.storages[0]) != "cpu":
        raise UnusualError("a package of the user's names locations")


class _Walk:
    def __init__(self, found: Trace) -> None:
        self._tensors = found.tensors
        self._marks = found.marks
        self._add = found.marks.append
        # By id, numbered in the order in which pickle remembers them. All are parts of the object.
        self._seen: Dict[int, int] = {}

    def value(self, obj: Any) -> None:
        kind = type(obj)
        if kind is torch.Tensor:
            if self._is_new(obj):
                self._add(TENSOR)
                self._tensors.append(obj)
        elif kind is str:
            if self._is_new(obj):
                if obj in _TORCH_STRINGS:
                    raise UnusualError("a string that may be torch's own")
                self._add(obj)
        elif kind is int:
            self._add(INT)
            self._add(obj)
        elif kind is float:
            self._add(FLOAT)
            self._add(_pack_double(obj))
        elif obj is None or kind is bool:
            self._add(_SINGLE[obj])
        elif kind is tuple:
            self._tuple(obj)
        elif kind is list:
            if self._is_new(obj):
                self._marks += (LIST, len(obj))
                for item in obj:
                    self.value(item)
        elif kind is dict or kind is OrderedDict:
            if self._is_new(obj):
                self._mapping(obj, kind)
        else:
            raise UnusualError(f"a {kind.__name__}")

    def _is_new(self, obj: Any) -> bool:
        number = self._seen.get(id(obj))
        if number is None:
            self._seen[id(obj)] = len(self._seen)
            return True
        self._add(number)
        return False

    def _mapping(self, obj: Dict[Any, Any], kind: type) -> None:
        self._marks += (DICT if kind is dict else ORDERED, len(obj))
        if len(obj) < _MIN_BULK or not self._in_bulk(obj):
            self._add(FALSE)
            value = self.value
            for key, item in obj.items():
                value(key)
                value(item)
        if kind is OrderedDict:
            state = vars(obj)
            self._add(TRUE if state else FALSE)
            if state:
                self.value(state)

    def _in_bulk(self, obj: Dict[Any, Any]) -> bool:
        """Takes strings and tensors that are all new in one go, where that is all there is."""
        if set(map(type, obj)) != {str} or set(map(type, obj.values())) != {torch.Tensor}:
            return False
        seen = self._seen
        identities = list(map(id, itertools.chain.from_iterable(obj.items())))
        if len(set(identities)) < len(identities) or not seen.keys().isdisjoint(identities):
            return False
        if not _TORCH_STRINGS.isdisjoint(obj):
            return False
        seen.update(zip(identities, itertools.count(len(seen))))
        self._add(TRUE)
        self._marks += obj
        self._tensors += obj.values()
        return True

    def _tuple(self, obj: Tuple[Any, ...]) -> None:
        # Pickle remembers a tuple after its parts; an empty one never.
        number = self._seen.get(id(obj))
        if number is not None:
            self._add(number)
            return
        self._marks += (TUPLE, len(obj))
        for item in obj:
            self.value(item)
        if obj and not self._is_new(obj):
            raise UnusualError("a tuple that is a part of itself")
