"""The plugin: a CheckpointIO that saves through the daemon."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from .. import fit_start
from ..arguments import check_choice, check_visible
from ..client import Client
from ..errors import CheckpointError
from ..names import PathLike
from .base import Routes, is_wrapper, local
from .in_flight import exception_in_flight
from .packages import FABRIC, classes
from .progress import progress
from .strategies import check_strategy
from .trained import trained_by_caller, trainer_above

if TYPE_CHECKING:
    from .follower import Follower

_log = logging.getLogger("ckptd")

# What Lightning saves when SLURM is about to end the job, just before it has it queued again.
_REQUEUE_NAME = re.compile(r"hpc_ckpt_\d+\.ckpt")
# Images that a training run keeps warm: one is being copied into while another is being written.
_WARM_IMAGES = 2
# In place of an argument that the caller left out: a base is given what the caller gave, and may
# not know the rest.
_LEFT_OUT: Any = object()

_Bases = classes(FABRIC, "plugins", "CheckpointIO")


class SidecarCheckpointIO(*_Bases):  # type: ignore[misc]
    """Saves through the ckptd daemon: training goes on as soon as the snapshot is taken.

    checkpoint_io: any CheckpointIO, made asynchronous: its save_checkpoint and remove_checkpoint run
             in a process outside of the trainer, in order, on a copy of it that is made at the
             first save; its load_checkpoint runs here, when all saves to the path have ended. None:
             the daemon writes the checkpoint itself, and Lightning's TorchCheckpointIO what goes to
             a URL, as to s3://.
    backend: format of the checkpoint; "torch" is what torch.save writes.
    wait:    "accepted": save_checkpoint returns when the snapshot is the daemon's; "durable": when
             the checkpoint is on stable storage, as it does for a requeue of SLURM in any case.
    visible: "when_durable": a checkpoint is at its path when it is on stable storage; "at_return":
             a path that did not exist is there when save_checkpoint returns; see Client.save.
    client:  a ckptd.Client; one with the defaults if None.
    verify:  whether load_checkpoint checks a file before it is loaded.
    overlap: whether parameters and optimizer state are copied behind forward and backward: the step
             of the optimizer waits for the copy (Client.save says what must not be done then).

    A save that fails after it was accepted is raised once: by the next save_checkpoint (when its
    own save is accepted), or by teardown. Picklable, copyable and usable after fork.
    """

    def __init__(
        self,
        checkpoint_io: Optional[Any] = None,
        *,
        backend: str = "torch",
        wait: str = "accepted",
        visible: str = "when_durable",
        client: Optional[Client] = None,
        verify: bool = True,
        overlap: bool = False,
    ) -> None:
        # No __init__ of a base: CheckpointIO has none, and XLACheckpointIO's demands torch_xla.
        check_choice("wait", wait, ("accepted", "durable"))
        check_visible(visible, overlap)
        self.backend = backend
        self.wait = wait
        self.visible = visible
        self.verify = verify
        self.overlap = overlap
        self.client = client if client is not None else Client()
        if checkpoint_io is not None:
            self._check_goes_with(checkpoint_io)
        self._routes = Routes(type(self).__name__, checkpoint_io)
        self._followers: List[Follower] = []
        self._expect_fit()

    @property
    def checkpoint_io(self) -> Optional[Any]:
        """The CheckpointIO that this one makes asynchronous, if any."""
        return self._routes.base

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: Any) -> None:
        """Sets it where there is none, also within wrappers of Lightning's; one that is set stays."""
        assert not is_wrapper(checkpoint_io), "a wrapper can be set by the constructor only"
        self._check_goes_with(checkpoint_io)
        self._routes.complete(checkpoint_io)

    def _check_goes_with(self, checkpoint_io: Any) -> None:
        if self.visible != "when_durable" or self.backend != "torch":
            raise ValueError(
                f"checkpoint_io: {type(checkpoint_io).__name__} writes what it likes, where it likes,"
                " so that backend= and visible= do not go with it; leave them out."
            )

    def save_checkpoint(
        self, checkpoint: Dict[str, Any], path: PathLike, storage_options: Optional[Any] = _LEFT_OUT
    ) -> None:
        """Saves `checkpoint` to `path`; it may be changed as soon as this returns.

        Raises TypeError if storage_options is given, and what Client.save raises. A SaveError whose
        `save` names an earlier save tells of that one; this one is accepted.
        """
        path = local(path)
        hosted = self._routes.to(path) is not None
        options = _given(storage_options=storage_options)
        if options.get("storage_options") is not None and not hosted:
            raise TypeError(
                "`Trainer.save_checkpoint(..., storage_options=...)` with `storage_options` arg is"
                f" not supported for `{type(self).__name__}`. Please implement your custom"
                " `CheckpointIO` to define how you'd like to use `storage_options`."
            )
        trained = trained_by_caller(self) if self.overlap else None
        prepared, overlap = self._prepare(checkpoint), trained or None
        if hosted:
            save = self._routes.save(self.client, prepared, path, overlap, options)
        else:
            save = self.client.save(
                prepared, path, backend=self.backend, overlap=overlap, visible=self.visible
            )
        for follower in self._followers_here():
            follower.accepted(save)
        if self.wait == "durable" or _REQUEUE_NAME.fullmatch(os.path.basename(save.path)):
            save.result()
        self._reserve(save.total_bytes)
        if exception_in_flight() is None:
            self.client.raise_failed()

    def load_checkpoint(
        self,
        path: PathLike,
        map_location: Optional[Any] = _LEFT_OUT,
        weights_only: Optional[bool] = _LEFT_OUT,
    ) -> Dict[str, Any]:
        """Loads the checkpoint at `path`, after the saves to it that were accepted before.

        map_location: as torch.load takes it; the CPU if None. weights_only: handed to torch.load.
        A checkpoint_io is given those that are given here, None included.
        Raises FileNotFoundError if there is none, CorruptCheckpointError.
        """
        path = local(path)
        loaded: Dict[str, Any]
        given = _given(map_location=map_location, weights_only=weights_only)
        if self._routes.to(path) is not None:
            loaded = self._routes.load(
                self.client, path, lambda base: base.load_checkpoint(path, **given)
            )
        else:
            if given.get("map_location") is None:
                given["map_location"] = "cpu"
            loaded = self.client.load(path, **given, verify=self.verify)
        return loaded

    def remove_checkpoint(self, path: PathLike) -> None:
        """Has the file or folder at `path` removed once the saves before it are durable.

        Does not wait for that; if it fails then, teardown raises it. With wait="durable" it is
        gone when this returns, or this raises CheckpointError; with visible="at_return", too, where
        no save is pending.
        """
        path = local(path)
        at_once = self.visible == "at_return" and not self.client.pending()
        wait = self.wait == "durable" or at_once
        if self._routes.to(path) is not None:
            self._routes.remove(self.client, path, wait)
        else:
            self.client.remove(path, wait=wait, backend=self.backend)

    def teardown(self) -> None:
        """Waits until all saves are durable and lets go of the daemon; the plugin stays usable.

        Raises for a save or removal that failed and was not reported yet. While an exception of
        training is under way, it adds a note to that and logs the failure instead.
        """
        in_flight = exception_in_flight()
        followers = self._followers_here()
        self._followers = [one for one in self._followers if one not in followers]
        try:
            try:
                self._flush(in_flight)
            finally:
                for follower in followers:
                    follower.end()
            if followers:  # whose hooks may have removed what is superseded
                self._flush(in_flight)
        finally:
            self.client.close()
            self._expect_fit()
            self._tear_down_base()

    def _tear_down_base(self) -> None:
        failed = sys.exc_info()[0] is not None
        try:
            self._routes.teardown()
        except Exception:
            if not failed:
                raise
            _log.exception("teardown of %s failed, too", type(self.checkpoint_io).__name__)

    def follow(self, follower: Follower) -> None:
        """Has `follower` given each save of its Trainer from now on, until its teardown ends it."""
        # A strategy that tears no plugin down leaves some that have ended.
        self._followers = [one for one in self._followers if not one.ended] + [follower]

    def _followers_here(self) -> List[Follower]:
        """Those of the Trainer that calls; one that trains within another has its own."""
        trainer = trainer_above()
        return [one for one in self._followers if trainer is None or one.trainer is trainer]

    def _flush(self, in_flight: Optional[BaseException]) -> None:
        try:
            with progress(self.client.pending()):
                self.client.flush()
        except CheckpointError as error:
            if in_flight is None:
                raise
            _log.error("%s", error)
            if hasattr(in_flight, "add_note"):
                in_flight.add_note(f"ckptd, while this was handled: {error}")

    def _prepare(self, checkpoint: Dict[str, Any]) -> Any:
        """What is saved of `checkpoint`."""
        return checkpoint

    def _expect_fit(self) -> None:
        self._reserved_bytes = 0
        self._watch = fit_start.Watch(self, SidecarCheckpointIO._reserve)

    def _reserve(self, size: int) -> None:
        """Has memory for the next saves made warm, each of `size` bytes."""
        if size <= self._reserved_bytes:
            return
        self._reserved_bytes = size
        try:
            self.client.reserve(size, images=_WARM_IMAGES)
        except CheckpointError:
            _log.debug("cannot reserve %d bytes", size, exc_info=True)

    def __bool__(self) -> bool:
        """True.

        A Trainer and a Fabric ask before they give the plugin to their strategy. If that would
        never call it, raises TypeError there: see `check_strategy`.
        """
        check_strategy(self, sys._getframe(1))
        return True

    def __getstate__(self) -> Dict[str, Any]:
        kept = {key: value for key, value in self.__dict__.items() if key != "_watch"}
        return {**kept, "_followers": []}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._expect_fit()


def _given(**arguments: Any) -> Dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not _LEFT_OUT}
