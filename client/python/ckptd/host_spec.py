"""Makes what the daemon needs to run a Python CheckpointIO in a process of its own: host/."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

from . import host_start, names
from .host.process import interpreter_flags
from .session import ANSWER_TIMEOUT, Session
from .v1 import checkpoint_pb2 as pb

_PROGRAM = str(Path(__file__).with_name("host") / "__main__.py")
# Where classes of the program itself live: in a process of multiprocessing, under the other name.
_MAIN = ("__main__", "__mp_main__")
_NOWHERE = ("", "", "", False)
_MAIN_GLOBAL = re.compile(rb"c(__main__|__mp_main__)\n([^\n]+)\n")


class Host:
    """A CheckpointIO and the process it runs in. Thread-safe, picklable.

    base:    the CheckpointIO, as it is when it is first needed: the host process has a copy.
    factory: makes one, there and, to load, here; instead of base.
    """

    def __init__(
        self, base: Optional[Any] = None, factory: Optional[Callable[[], Any]] = None, label: str = ""
    ) -> None:
        self._base = base
        self._factory = factory
        self.label = label or type(base).__name__
        self._spec: Optional[bytes] = None
        # Address, session, host, and whether the daemon can start it.
        self._registered: Tuple[str, str, str, bool] = _NOWHERE

    @property
    def base(self) -> Any:
        """The CheckpointIO of this process."""
        if self._base is None:
            assert self._factory is not None
            self._base = self._factory()
        return self._base

    def prepare(self) -> None:
        """Makes the spec unless there is one. Raises TypeError for what cannot be pickled."""
        if self._spec is None:
            self._spec = self._make_spec().SerializeToString(deterministic=True)

    def check(self) -> None:
        """Raises TypeError if what is to run there cannot be pickled now."""
        self._pickled()

    def id_in(self, session: Session, session_id: str) -> str:
        """The host's name in an open session. Raises grpc.RpcError.

        Where the daemon cannot start it, this process does, and again when it is killed.
        """
        self.prepare()
        spec = pb.HostSpec.FromString(self._spec or b"")
        registered = self._registered
        anew = registered[:2] != (session.address, session_id)
        if anew:
            request = pb.RegisterHostRequest(session_id=session_id, spec=spec)
            answer = session.call("RegisterHost", request, ANSWER_TIMEOUT)
            registered = (session.address, session_id, answer.host, answer.startable)
        _, _, host, startable = registered
        if not startable:
            host_start.keep(host, spec, session.address, anew)
        self._registered = registered
        return host

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_registered": _NOWHERE}

    def _make_spec(self) -> pb.HostSpec:
        if not sys.executable:
            raise TypeError(
                f"{self.label}: cannot run in a host process: this interpreter does not know its own "
                "program (sys.executable). Set that, or save without checkpoint_io."
            )
        modules = [os.path.abspath(entry) for entry in sys.path]
        found = os.stat(sys.executable)
        spec = pb.HostSpec(
            label=self.label,
            argv=[sys.executable, *interpreter_flags(), _PROGRAM],
            directory=os.getcwd(),
            umask=names.umask(),
            device=found.st_dev,
            inode=found.st_ino,
            payload=pickle.dumps(
                {
                    "label": self.label,
                    "modules": modules,
                    "argv": list(sys.argv),
                    "object": self._pickled(),
                }
            ),
        )
        for name, value in os.environ.items():
            spec.environment[_text(name)] = _text(value)
        spec.environment["CKPTD_HOST_MODULES"] = json.dumps(modules)
        return spec

    def _pickled(self) -> bytes:
        what = ("base", self._base) if self._factory is None else ("factory", self._factory)
        try:
            return by_value(what)
        except Exception as error:
            part, cause = _unpicklable_part(what[1], error)
            raise TypeError(
                f"{self.label}: cannot be pickled, and so cannot run in the host process: {part}: "
                f"{cause}. Make locks, sockets, clients and open files when they are first needed, or "
                "leave them out in __getstate__."
            ) from error


def by_value(obj: Any) -> bytes:
    """Pickles `obj` for another process: with the classes and functions of this program itself."""
    import cloudpickle  # which most programs that save never need

    main = sys.modules.get("__mp_main__")
    if main is not None and main.__name__ == "__mp_main__":
        cloudpickle.register_pickle_by_value(main)
    pickled: bytes = cloudpickle.dumps(obj)
    return pickled


def main_globals(data: bytes) -> bytes:
    """What a pickle of protocol 2 names of this program itself, pickled; empty if nothing."""
    found: Dict[str, Any] = {}
    for module, name in set(_MAIN_GLOBAL.findall(data)):
        where, attribute = module.decode(), name.decode("utf-8", "replace")
        value = getattr(sys.modules.get(where), attribute, None)
        if value is not None:
            found[f"{where}:{attribute}"] = value
    return by_value(found) if found else b""


def _text(value: str) -> str:
    # A string of Protobuf is UTF-8; a variable that is not cannot be meant for a CheckpointIO.
    return value.encode("utf-8", "replace").decode("utf-8")


def _unpicklable_part(obj: Any, error: Exception) -> Tuple[str, Exception]:
    """The attribute that cannot be pickled, if it is one, and why."""
    for name, value in getattr(obj, "__dict__", {}).items():
        try:
            by_value(value)
        except Exception as cause:  # noqa: BLE001 - whatever its __reduce__ raises
            return f"its attribute {name!r} ({type(value).__name__})", cause
    return f"{type(obj).__name__}", error
