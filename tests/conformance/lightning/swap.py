"""A pytest plugin for Lightning's own suite: swaps the Trainer's default CheckpointIO for ours.

$CKPTD_CONFORMANCE_MODE: "stock" swaps nothing; "durable" and "at_return" make ours wait for
durability, or show the checkpoint at once. Writes to $CKPTD_CONFORMANCE_RESULTS, as JSON, the ids
of the tests that passed, and of those that used the default plugin.
"""

from __future__ import annotations

import functools
import io
import json
import os
import threading
from unittest.mock import Mock

import pytest
import torch
from ckptd.lightning import SidecarCheckpointIO
from ckptd.lightning.strategies import why_unusable
from ckptd.session import all_sessions
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

ARGUMENTS = {"stock": None, "durable": {"wait": "durable"}, "at_return": {"visible": "at_return"}}
# What a thread of ours may take to its end.
THREAD_SECONDS = 20
CALLS = ("save_checkpoint", "load_checkpoint", "remove_checkpoint")

running = []  # the test
failed, passed, used = set(), set(), set()


def note_use(method):
    """`method`, which notes for which test it is called."""

    @functools.wraps(method)
    def noted(*arguments, **named):
        for item in running:
            if ("used", True) not in item.user_properties:
                item.user_properties.append(("used", True))
        return method(*arguments, **named)

    return noted


class Ours(SidecarCheckpointIO):
    """What the suite takes for the default plugin."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        # Some tests count saves by the calls of a torch.save that they have replaced.
        if isinstance(torch.save, Mock):
            torch.save(checkpoint, io.BytesIO())
        super().save_checkpoint(checkpoint, path, storage_options)


def swap_default(arguments):
    """Has each Trainer that is given no CheckpointIO take one of ours."""
    original = _AcceleratorConnector._lazy_init_strategy

    @functools.wraps(original)
    def with_ours(connector):
        strategy = connector.strategy
        free = connector.checkpoint_io is None and "XLA" not in type(strategy).__name__
        if free and why_unusable(strategy) is None:
            connector.checkpoint_io = Ours(**arguments)
        return original(connector)

    _AcceleratorConnector._lazy_init_strategy = with_ours


def pytest_configure():
    for call in CALLS:
        setattr(TorchCheckpointIO, call, note_use(getattr(TorchCheckpointIO, call)))
    arguments = ARGUMENTS[os.environ["CKPTD_CONFORMANCE_MODE"]]
    if arguments is not None:
        swap_default(arguments)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    running[:] = [item]
    try:
        return (yield)
    finally:
        running.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown():
    # The suite looks for threads that a test leaves; ours stay as long as a session is open.
    for thread in threading.enumerate():
        if thread.name == "ckptd-reserve":  # it may have started those that copy
            thread.join(THREAD_SECONDS)
    for session in all_sessions():
        session.copier.close()


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        passed.add(report.nodeid)
    if report.failed:
        failed.add(report.nodeid)
    if ("used", True) in map(tuple, report.user_properties):
        used.add(report.nodeid)


def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):  # a worker of xdist tells its controller
        with open(os.environ["CKPTD_CONFORMANCE_RESULTS"], "w") as file:
            json.dump({"passed": sorted(passed - failed), "used": sorted(used)}, file)
