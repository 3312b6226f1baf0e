"""At exit, says which saves and removals have failed that nobody asked after."""

from __future__ import annotations

import atexit
import logging
import time

from .errors import CheckpointError, CheckpointTimeoutError
from .flushing import flush
from .overlap import wait_for_copies
from .session import Session, all_sessions

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
        for job in session.ledger.take_removing():
            _report_removals(session, job, deadline)
        session.close()  # gRPC objects must not outlive its modules


def _report_removals(session: Session, job: str, deadline: float) -> None:
    try:
        for failed in flush(session, session, max(0.0, deadline - time.monotonic()), job):
            _log.error("%s", failed)
    except CheckpointTimeoutError:
        _log.warning("%s: removals have not ended yet; the daemon goes on with them", job)
    except CheckpointError as error:
        _log.error("%s: not known whether its removals have succeeded: %s", job, error)


atexit.register(_report)
