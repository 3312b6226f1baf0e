"""At exit, says which saves have failed that nobody asked after."""

from __future__ import annotations

import atexit
import logging
import time

from .errors import CheckpointError, CheckpointTimeoutError
from .overlap import wait_for_copies
from .session import all_sessions

#: Seconds that the end of the process waits for its pending saves, to hear how they end. The daemon
#: goes on with them in any case.
EXIT_TIMEOUT = 30.0

_log = logging.getLogger("ckptd")


def _report() -> None:
    wait_for_copies()
    deadline = time.monotonic() + EXIT_TIMEOUT
    for session in all_sessions():
        for save in session.ledger.pending():
            try:
                session.connect()  # one that is away is not waited for
                save.result(max(0.0, deadline - time.monotonic()))
            except CheckpointTimeoutError:
                _log.warning(
                    "%s: not durable yet; the daemon goes on with %s", save.path, save.name
                )
            except CheckpointError as error:
                _log.error("%s: not known to be durable: %s", save.path, error)
        for save in session.ledger.take_failed():
            _log.error("%s", save.error())
        session.close()  # gRPC objects must not outlive its modules


atexit.register(_report)
