"""Writes data.pkl from the structure of an object, as pickle would, and keeps the last ones.

The bytes are those of pickle: `works` finds out, once, with the Python and the torch that are here.
"""

from __future__ import annotations

import operator
import struct
import threading
from collections import OrderedDict
from itertools import compress
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch

from .structure import (
    DICT,
    FLOAT,
    INT,
    ITEM_BYTES,
    LIST,
    ORDERED,
    STORAGE_TYPES,
    TENSOR,
    TRUE,
    TUPLE,
    Trace,
    UnusualError,
    trace,
)

# Texts of which there is one object only, whoever made it: in some versions of Python, a digit.
_DIGITS = frozenset("0123456789" if str(3) is str(int("3")) else "")
_BATCH = 1000  # items in one SETITEMS or APPENDS

_pack_u32 = struct.Struct("<I").pack


def write(found: Trace) -> bytes:
    """The pickle of an object with this structure."""
    return b"".join(_Writer(found).run())


class _Writer:
    """Writes what pickle's protocol 2 would, opcode by opcode."""

    def __init__(self, found: Trace) -> None:
        self._next: Iterator[Any] = iter(found.marks)
        self._marks = len(found.marks)
        self._parts: List[bytes] = []
        #: The places, among the parts, of numbers and strings, by their places among the marks.
        self.values: Dict[int, int] = {}
        self._tensors = zip(*found.columns)
        self._sizes = found.sizes
        self._out: List[bytes] = []
        self._put = self._out.append
        self._count = 0  # of what pickle has remembered
        self._recalls: List[bytes] = []  # by the number of an object among the new ones of the walk
        self._keys: List[bytes] = []
        # Recalls of what may be the user's and a key.
        self._digits: Dict[str, bytes] = {}
        self._globals: Dict[bytes, bytes] = {}

    def run(self) -> List[bytes]:
        """The pickle, in parts: each of `values` is one."""
        self._put(b"\x80\x02")
        self._value()
        self._put(b".")
        self._end_part()
        return self._parts

    def _end_part(self) -> None:
        self._parts.append(b"".join(self._out))
        self._out.clear()

    def _changeable(self, value: Any) -> None:
        """Writes a value, the mark that was read last, as a part of its own."""
        self._end_part()
        self.values[self._marks - operator.length_hint(self._next) - 1] = len(self._parts)
        self._parts.append(_pickled(value))

    def _remember(self) -> Tuple[bytes, bytes]:
        """What remembers the object that was written just now, and what recalls it."""
        number = self._count
        self._count = number + 1
        if number < 256:
            return b"q%c" % number, b"h%c" % number
        four = _pack_u32(number)
        return b"r" + four, b"j" + four

    def _remember_new(self) -> None:
        memo, recall = self._remember()
        self._put(memo)
        self._recalls.append(recall)

    def _once(self, pickled: bytes) -> bytes:
        """A global or a string of torch's: written the first time, then recalled."""
        recall = self._globals.get(pickled)
        if recall is not None:
            return recall
        memo, self._globals[pickled] = self._remember()
        return pickled + memo

    def _value(self) -> None:
        mark = next(self._next)
        kind = type(mark)
        if mark is TENSOR:
            self._tensor(*next(self._tensors))
        elif kind is str:
            if mark in _DIGITS:
                self._string(mark)
            else:
                self._changeable(mark)
                self._remember_new()
        elif kind is int:
            self._put(self._recalls[mark])
        elif mark is INT or mark is FLOAT:
            self._changeable(next(self._next))
        elif mark is TUPLE:
            self._tuple(next(self._next))
        elif mark is LIST:
            self._put(b"]")
            self._remember_new()
            self._batches(next(self._next), self._value, b"ae", 1)
        elif mark is DICT:
            self._put(b"}")
            self._remember_new()
            self._mapping(0)
        elif mark is ORDERED:
            self._put(self._once(b"ccollections\nOrderedDict\n") + b")R")
            self._remember_new()
            self._mapping(2)
            if next(self._next) is TRUE:
                self._value()
                self._put(b"b")
        else:
            self._put(mark.pickled)

    def _mapping(self, way: int) -> None:
        count = next(self._next)
        in_bulk = next(self._next) is TRUE
        self._batches(count, self._string_and_tensor if in_bulk else self._pair, b"su", way)

    def _pair(self) -> None:
        self._value()
        self._value()

    def _string_and_tensor(self) -> None:
        self._string(next(self._next))
        self._tensor(*next(self._tensors))

    def _string(self, text: str) -> None:
        """Writes a new string of the user's."""
        self._recalls.append(self._once_digit(text) if text in _DIGITS else self._plain(text))

    def _plain(self, text: str) -> bytes:
        """Writes a string; returns what recalls it."""
        memo, recall = self._remember()
        self._put(_pickled_str(text) + memo)
        return recall

    def _once_digit(self, text: str) -> bytes:
        recall = self._digits.get(text)
        if recall is None:
            recall = self._digits[text] = self._plain(text)
        else:
            self._put(recall)
        return recall

    def _batches(self, count: int, item: Callable[[], None], ends: bytes, way: int) -> None:
        """Writes `count` items as pickle batches them.

        way: 0: a dict, which has one batch more where the last one is full; 1: a list; 2: by an
        iterator, where a last one that is alone is no batch.
        """
        if count == 0:
            return
        if count == 1:
            item()
            self._put(ends[:1])
            return
        while count >= (0 if way == 0 else 1):
            size = min(count, _BATCH)
            if way == 2 and size == 1:
                item()
                self._put(ends[:1])
                return
            self._put(b"(")
            for _ in range(size):
                item()
            self._put(ends[1:])
            count -= _BATCH

    def _tuple(self, count: int) -> None:
        if count == 0:
            self._put(b")")
            return
        if count > 3:
            self._put(b"(")
        for _ in range(count):
            self._value()
        self._put(_end_of_tuple(count))
        self._remember_new()

    def _tensor(
        self,
        key: int,
        dtype: torch.dtype,
        offset: int,
        shape: Tuple[int, ...],
        stride: Tuple[int, ...],
        grad: bool,
    ) -> None:
        once, put = self._once, self._put
        put(once(b"ctorch._utils\n_rebuild_tensor_v2\n") + b"((" + once(_pickled_str("storage")))
        put(once(b"ctorch\n" + STORAGE_TYPES[dtype] + b"\n"))
        if key == len(self._keys):
            text = str(key)
            self._keys.append(self._once_digit(text) if text in _DIGITS else self._plain(text))
        else:
            put(self._keys[key])
        items = self._sizes[key] // ITEM_BYTES[dtype]
        put(once(_pickled_str("cpu")) + _pickled_int(items) + b"t")
        put(self._remember()[0] + b"Q" + _pickled_int(offset))
        self._ints(shape)
        self._ints(stride)
        put(b"\x88" if grad else b"\x89")
        put(once(b"ccollections\nOrderedDict\n") + b")R" + self._remember()[0])
        put(b"t" + self._remember()[0] + b"R")
        self._remember_new()

    def _ints(self, numbers: Tuple[int, ...]) -> None:
        if not numbers:
            self._put(b")")
            return
        if len(numbers) > 3:
            self._put(b"(")
        for number in numbers:
            self._put(_pickled_int(number))
        self._put(_end_of_tuple(len(numbers)) + self._remember()[0])


def _pickled(value: Any) -> bytes:
    """What writes a value among the marks: an int, a packed double or a str."""
    if type(value) is bytes:
        return b"G" + value
    return _pickled_int(value) if type(value) is int else _pickled_str(value)


def _pickled_int(number: int) -> bytes:
    if 0 <= number < 256:
        return b"K%c" % number
    if 0 <= number < 65536:
        return b"M" + number.to_bytes(2, "little")
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + number.to_bytes(4, "little", signed=True)
    size = (number.bit_length() >> 3) + 1
    if number < 0 and size > 1 and number == -(1 << (8 * size - 9)):
        size -= 1
    if size > 255:
        raise UnusualError("a very large number")
    return b"\x8a%c" % size + number.to_bytes(size, "little", signed=True)


def _pickled_str(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + _pack_u32(len(data)) + data


def _end_of_tuple(count: int) -> bytes:
    return (b"\x85", b"\x86", b"\x87")[count - 1] if count <= 3 else b"t"


class _Known:
    """A structure and its pickle, in parts."""

    def __init__(self, found: Trace) -> None:
        writer = _Writer(found)
        self._parts = writer.run()
        self._values = writer.values
        self._marks = found.marks
        self._tensors = found.of_tensors()

    def pickle(self) -> bytes:
        return b"".join(self._parts)

    def pickle_of(self, found: Trace) -> Optional[bytes]:
        """The pickle of what differs in numbers and strings at most, and becomes what is known;
        None for anything else. Raises UnusualError."""
        marks = found.marks
        if len(marks) != len(self._marks) or found.of_tensors() != self._tensors:
            return None
        if marks != self._marks:
            changed = list(compress(range(len(marks)), map(operator.ne, marks, self._marks)))
            if not all(self._may_change(at, marks[at]) for at in changed):
                return None
            pickled = [_pickled(marks[at]) for at in changed]
            for at, part in zip(changed, pickled):
                self._parts[self._values[at]] = part
            self._marks = marks
        return self.pickle()

    def _may_change(self, at: int, value: Any) -> bool:
        same_kind = type(value) is type(self._marks[at])
        return at in self._values and same_kind and value not in _DIGITS


class Structures:
    """The structures saved last, each with its pickle. Thread-safe."""

    _KEPT = 2

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: List[_Known] = []

    def pickle_of(self, found: Trace) -> bytes:
        """The pickle of what was traced: that of one before which was alike, or a new one.

        From one save to the next the numbers of a training change, and the names of files: such
        values alone are written anew.
        """
        with self._lock:
            for known in self._known:
                pickle = known.pickle_of(found)
                if pickle is not None:
                    return pickle
        new = _Known(found)
        pickle = new.pickle()
        with self._lock:
            self._known = [new, *self._known[: self._KEPT - 1]]
        return pickle


_works: Optional[bool] = None


def works(pickled: Any) -> bool:
    """Whether `write` gives what `pickled(obj)` does, for an object with one of each kind."""
    global _works
    if _works is None:
        base = torch.zeros(3, 4)
        many: Dict[Any, int] = {f"key {i}": i for i in range(_BATCH)}
        ordered: Any = OrderedDict((f"{i} weight", torch.zeros(i)) for i in range(12))
        ordered._metadata = OrderedDict([("version", {"is": 1})])
        long = OrderedDict((i, -i * 1000) for i in range(2 * _BATCH + 1))
        leaves: List[Any] = [None, True, False, 0, -1, 1 << 40, -(1 << 39), 0.5, "text", (), (1,)]
        leaves.append((1, 2, 3, 4))
        digits = {"5": 1, "0": [torch.zeros(2), "7"]}
        sample: List[Any] = [digits, base, base[1], base.t(), base, many, {**many, 1: 2}]
        sample += [ordered, long, leaves, leaves]
        sample += [{}, [], OrderedDict(), {1: 2}, [1], torch.zeros((), requires_grad=True), many]
        try:
            _works = write(trace(sample)) == pickled(sample)
        except UnusualError:
            _works = False
    return _works
