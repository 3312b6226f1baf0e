"""Shows how a long flush goes on."""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

from ..save import Save
from .trained import trainer_above

#: Seconds that a flush may last unseen.
DELAY_SECONDS = 2.0
_REFRESH_SECONDS = 0.2


@contextmanager
def progress(saves: List[Save]) -> Iterator[None]:
    """Shows the progress of `saves` while the body runs, if that takes long and is wanted.

    It is wanted where a Trainer further up the stack shows a progress bar: not on other ranks than
    0, not with enable_progress_bar=False, and not outside a Trainer.
    """
    if not saves or not _wanted(trainer_above()):
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(saves, done), name="ckptd-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(saves: List[Save], done: threading.Event) -> None:
    if done.wait(DELAY_SECONDS):
        return
    total = sum(save.total_bytes for save in saves)
    # Every Trainer's own bars need it.
    tqdm = importlib.import_module("tqdm.auto").tqdm
    what = "Making checkpoints durable"
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stdout) as bar:
        while not done.wait(_REFRESH_SECONDS):
            bar.update(sum(_written(save) for save in saves) - bar.n)
        bar.update(sum(_written(save) for save in saves) - bar.n)


def _written(save: Save) -> int:
    return save.total_bytes if save.done() else save.persisted_bytes


def _wanted(trainer: Optional[Any]) -> bool:
    if trainer is None or not trainer.is_global_zero:
        return False
    bar = trainer.progress_bar_callback
    return bar is not None and getattr(bar, "is_enabled", True)
