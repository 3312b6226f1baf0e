"""Copies behind forward and backward: parameters and optimizer state, until the optimizer's step.

Nothing but the step of an optimizer changes what is guarded here, and a hook on that step waits for
the copy. Everything else that is saved, such as the buffers that forward changes, is copied before
`save` returns. What changes a guarded tensor all the same, as a `copy_` by hand, is found out by
its version counter when the copy is complete: the save fails then, and is never a mixture.
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import torch

from .capture import Captured
from .errors import SaveError

# What is smaller is copied at once: to keep track of it costs more.
_MIN_BYTES = 64 << 10
_THREAD_NAME = "ckptd-overlap"


class Guard:
    """The optimizers, and modules, whose hooks wait for the copies of this process.

    parts: optimizers, at least one, and modules, whose load_state_dict is to wait, too; one or
    several. Raises ValueError where a hook cannot be in place.
    """

    def __init__(self, parts: Any) -> None:
        listed = list(parts) if isinstance(parts, Iterable) and not _is_module(parts) else [parts]
        self._optimizers = [one for one in listed if isinstance(one, torch.optim.Optimizer)]
        for one in listed:
            if not isinstance(one, (torch.optim.Optimizer, torch.nn.Module)):
                raise ValueError(
                    f"overlap: {one!r} is neither an optimizer nor a module. Pass the optimizers "
                    "whose step is to wait for the copy: save(state, path, overlap=optimizer)."
                )
        if not self._optimizers:
            raise ValueError(
                "overlap: there is no optimizer whose step could wait for the copy. Pass it: "
                "save(state, path, overlap=[optimizer, model])."
            )
        for one in listed:
            _hook(one)
        self._versions: List[Tuple[torch.Tensor, int]] = []

    def split(self, captured: Captured) -> Tuple[List[int], List[int]]:
        """Which storages are to be copied at once, and which may be copied behind."""
        guarded: Set[int] = set()
        self._versions = []
        for tensor in self._tensors():
            storage = tensor.untyped_storage()
            if storage.nbytes() >= _MIN_BYTES:
                guarded.add(storage._cdata)
                self._versions.append((tensor, tensor._version))
        parts: Tuple[List[int], List[int]] = ([], [])
        for index, storage in enumerate(captured.storages):
            parts[storage._cdata in guarded].append(index)
        return parts

    def check(self, path: str, save: str) -> None:
        """Raises SaveError if a guarded tensor was changed since `split`."""
        if all(tensor._version == version for tensor, version in self._versions):
            return
        raise SaveError(
            f"{path}: a parameter or a state of an optimizer was changed while it was being "
            "copied, by something else than the optimizer's step. Save without overlap there, or give the "
            "module that is loaded to it: overlap=[optimizer, model].",
            reason="CHANGED_IN_COPY",
            path=path,
            save=save,
        )

    def _tensors(self) -> Iterator[torch.Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                # Who trains no weight changes it in some other way, if at all.
                yield from (one for one in group["params"] if one.requires_grad and _is_plain(one))
            for state in optimizer.state.values():
                yield from (value for value in state.values() if _is_plain(value))


def _is_plain(value: Any) -> bool:
    plain = type(value) in (torch.Tensor, torch.nn.Parameter)
    return plain and value.layout is torch.strided and not value.is_inference()


def _is_module(value: Any) -> bool:
    return isinstance(value, torch.nn.Module)  # some of which can be iterated over


_hooked: weakref.WeakSet[Any] = weakref.WeakSet()


def _hook(part: Any) -> None:
    if part in _hooked:
        return
    if _is_module(part):
        for module in part.modules():
            module._register_load_state_dict_pre_hook(wait_for_copies)
    else:
        if not getattr(type(part).step, "hooked", False):
            raise ValueError(
                f"overlap: the step of {type(part).__name__} runs no hooks, so that nothing could "
                "wait for the copy. Save without overlap."
            )
        part.register_step_pre_hook(_before_step)
    _hooked.add(part)


def _before_step(_: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """The hook on a step. With a closure, forward and backward are part of the step, before it
    changes anything, as Lightning has it: the wait is behind them then."""
    named = "closure" in kwargs
    closure = kwargs["closure"] if named else next(iter(args[1:2]), None)
    if not _running or not callable(closure):
        return wait_for_copies()

    def closure_and_wait(*inner: Any, **by_name: Any) -> Any:
        result = closure(*inner, **by_name)
        wait_for_copies()
        return result

    if named:
        return args, {**kwargs, "closure": closure_and_wait}
    return (args[0], closure_and_wait, *args[2:]), kwargs


# ---- Copies that are under way -------------------------------------------------------------------

_lock = threading.Lock()
_running: Set[Future[None]] = set()
_threads: Optional[ThreadPoolExecutor] = None


def start(copy: Callable[[], None]) -> None:
    """Runs `copy`, which raises nothing, behind the caller. The process does not end before it."""
    global _threads
    running: Optional[Future[None]]
    with _lock:
        if _threads is None:
            # They stay: a new one would run first, and who starts it only when that lets it.
            _threads = ThreadPoolExecutor(thread_name_prefix=_THREAD_NAME)
        try:
            running = _threads.submit(copy)
            _running.add(running)
        except RuntimeError:  # the interpreter is ending, and threads take no more
            running = None
    if running is None:
        copy()
    else:
        running.add_done_callback(_ended)


def _ended(copy: Future[None]) -> None:
    with _lock:
        _running.discard(copy)


def wait_for_copies(*_: Any) -> None:
    """Returns when no copy of this process is under way. Also a hook, whatever its arguments."""
    if not _running or threading.current_thread().name.startswith(_THREAD_NAME):
        return
    with _lock:
        running = list(_running)
    wait(running)


def _after_fork_in_child() -> None:
    global _lock, _threads
    _lock = threading.Lock()
    _threads = None
    _running.clear()  # they are the parent's


os.register_at_fork(after_in_child=_after_fork_in_child)
