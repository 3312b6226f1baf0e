"""What the trainers of one folder have asked for, and what must be in it therefore."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Dict, List, Optional, Set

from durability import is_temporary
from ledger import LedgerReader
from pieces import FileDigests

from ckptd.v1 import checkpoint_pb2 as pb

_CHECKPOINT = re.compile(r"(epoch=\d+-step=\d+|last)(-v\d+)?\.ckpt")


class Lineage:
    """A folder of checkpoints, and the trainers that went on from each other's.

    Replays the ledger of each trainer. What a call that had returned asked for must be so; what
    the trainer died in may be so. Each file is compared with the hash of the state, made before
    the save; each step of training must give the same weights in every trainer that comes by it.
    """

    def __init__(self, name: str, folder: Path, width: int, transport: str) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.log = folder / f"{name}.log"
        self.width = width
        self.transport = transport
        self.last_step = 0
        self.weights: Dict[int, str] = {}
        # By path: every state that was to be saved there, and the states that it may be in now.
        # None is no file.
        self._ever: Dict[str, Set[Optional[str]]] = {}
        self._may_be: Dict[str, Set[Optional[str]]] = {}
        self._steps: Dict[str, int] = {}  # by digest
        self._digests = FileDigests()

    def note_states(self, ledger: Path) -> None:
        """Takes in what a trainer that has ended was about to save."""
        for event in LedgerReader(ledger).events():
            if event["event"] == "save":
                self._note_weights(event["step"], event["weights"])
                self._steps[event["digest"]] = event["step"]
                self._ever.setdefault(event["path"], set()).add(event["digest"])
            elif event["event"] == "finished":
                self._note_weights(event["step"], event["weights"])

    def replay(self, ledger: Path, saves: List[pb.Save]) -> None:
        """Takes in all that it did, now that its saves have ended."""
        accepted: Dict[str, int] = {}
        tried: Dict[str, int] = {}
        for event in LedgerReader(ledger).events():
            if "path" not in event:
                continue
            path = event["path"]
            now = self._may_be.setdefault(path, {None})
            if event["event"] == "save":
                tried[path] = tried.get(path, 0) + 1
                self._may_be[path] = now | {event["digest"]}
                newest = event["digest"]
            elif event["event"] == "saved":
                accepted[path] = accepted.get(path, 0) + 1
                self._may_be[path] = {newest}
            elif event["event"] == "remove":
                self._may_be[path] = now | {None}
            elif event["event"] == "removed":
                self._may_be[path] = {None}
        for path, count in tried.items():
            durable = sum(s.path == path and s.state == pb.Save.SUCCEEDED for s in saves)
            assert accepted.get(path, 0) <= durable <= count, (path, saves)

    def look(self) -> int:
        """Checks, while saves are pending, that each file is whole; returns how many are there."""
        found = 0
        for name in os.listdir(self.folder):
            assert _CHECKPOINT.fullmatch(name) or is_temporary(name), name
            state = self._digests.of(self.folder / name) if _CHECKPOINT.fullmatch(name) else None
            if state is not None:
                assert state in self._ever[str(self.folder / name)], f"{name}: nobody saved this"
                found += 1
        return found

    def check(self) -> None:
        """Checks, when nothing is pending, that the folder is what the trainers made it."""
        for name in os.listdir(self.folder):
            assert _CHECKPOINT.fullmatch(name), f"{name}: a stray file"
            assert str(self.folder / name) in self._may_be, f"{name}: nobody saved this"
        for path, states in self._may_be.items():
            state = self._digests.of(Path(path))
            assert state in states, f"{path}: is {state}, and may be one of {states}"
            self._may_be[path] = {state}
            if state is not None and Path(path).name.startswith("last"):
                self.last_step = max(self.last_step, self._steps[state])

    def _note_weights(self, step: int, weights: str) -> None:
        known = self.weights.setdefault(step, weights)
        assert known == weights, f"{self.name}: resumed, and step {step} is another one than before"
