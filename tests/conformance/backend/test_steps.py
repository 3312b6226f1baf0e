"""At each call by which a backend changes a folder: its death, an error, a cancellation.

Whoever writes, the daemon or a host process, passes the same calls each time; steps.c counts them. A
backend whose calls do not go through libc is not seen, and its tests say so.
"""

from __future__ import annotations

import contextlib

import ckptd
import grpc
import pytest
import torch
from ckptd.v1 import checkpoint_pb2 as pb
from harness import wait_until
from test_conformance import REASONS
from tested import plain

STATES = [{"w": torch.full((3, 4), float(seed)), "b": torch.arange(seed, seed + 5)} for seed in (1, 2)]
#: Calls of one operation; more are no failure of the backend, but not tried one by one.
_MOST = 100


def count(backend, folder, call):
    """How many steps the call takes."""
    backend.steps.count(folder)
    call()
    backend.steps.rest()
    found = backend.steps.counted
    if found == 0:
        pytest.skip("its writes do not go through libc: nothing to stop them at")
    return min(found, _MOST)


def steps_to_try(backend, action, way, total):
    """All of them; but a death costs the start of another Python with torch, so not all in each way."""
    is_last_only = backend.is_python and action == "kill" and way == "new path"
    return range(total if is_last_only else 1, total + 1)


class Pair:
    """A path that has one of two checkpoints, the one of which is what is saved next."""

    def __init__(self, backend, path):
        self.backend = backend
        self.path = path
        self.there = None

    def save(self):
        """Has the other one saved; its error, if any."""
        return self.backend.survive(lambda: self.backend.save(self.next, self.path).result())

    @property
    def next(self):
        """The other one."""
        return STATES[1] if self.there is STATES[0] else STATES[0]

    def look(self, error):
        """Asserts that what is there is the old one or the new one, and that one after no error."""
        found = plain(self.backend.found(self.path))
        old = plain(self.there)
        assert found in (old, plain(self.next)), f"neither old nor new after: {error}"
        if found != old:
            self.there = self.next
        else:
            assert error is not None, "was said to be saved, and is not there"

    def check_alone(self):
        """Asserts that a save works, and leaves nothing beside it."""
        assert self.save() is None
        self.look(None)
        assert self.backend.listed(self.path.parent) == [self.path.name]


def check_error(error, path):
    """An error that a user sees has a reason, and names the path."""
    if error is not None:
        assert error.reason in REASONS
        assert str(path) in str(error)


@pytest.mark.parametrize("action", ["kill", "fail"])
@pytest.mark.parametrize("way", ["new path", "overwrite"])
def test_old_or_new_at_each_step_of_a_save(backend, folder, action, way):
    pair = Pair(backend, folder / "a")
    assert pair.save() is None
    pair.look(None)
    total = count(backend, folder, lambda: pair.look(pair.save()))
    reached = 0
    numbers = steps_to_try(backend, action, way, total)
    for number in numbers:
        if way == "new path":
            backend.remove(pair.path)
            pair.there = None
        getattr(backend.steps, action)(folder, number)
        error = pair.save()
        reached += backend.steps.reached
        backend.steps.rest()
        check_error(error, pair.path)
        pair.look(error)
    assert reached >= len(numbers) // 2
    pair.check_alone()


@pytest.mark.parametrize("action", ["kill", "fail"])
def test_whole_or_gone_at_each_step_of_a_removal(backend, folder, action):
    pair = Pair(backend, folder / "a")
    assert pair.save() is None
    total = count(backend, folder, lambda: backend.remove(pair.path))
    for number in steps_to_try(backend, action, "removal", total):
        backend.save(STATES[0], pair.path).result()
        getattr(backend.steps, action)(folder, number)
        error = backend.survive(lambda: backend.remove(pair.path))
        backend.steps.rest()
        check_error(error, pair.path)
        found = backend.found(pair.path)
        assert plain(found) in (None, plain(STATES[0]))
        assert found is None or error is not None, "was said to be removed, and is there"
        backend.remove(pair.path)
        assert backend.found(pair.path) is None
    pair.there = None
    pair.check_alone()


LARGE = [{"w": torch.full((500_000,), float(seed))} for seed in (1, 2)]


def get(backend, save):
    """What the daemon says of it."""
    return backend.daemon.call("GetSave", pb.GetSaveRequest(name=save.name))


def cancel_at(backend, path, number):
    """Cancels a save of LARGE[1] at that step; how the save ended."""
    backend.steps.hold(path.parent, number)
    save = backend.save(LARGE[1], path)
    backend.steps.await_held()
    with contextlib.suppress(grpc.RpcError):  # too late, perhaps
        backend.daemon.call("CancelSave", pb.CancelSaveRequest(name=save.name))
    backend.steps.release()
    wait_until(save.done, "the end of a save that was cancelled")
    state = get(backend, save).state
    assert state in (pb.Save.CANCELLED, pb.Save.SUCCEEDED)
    found = plain(backend.load(path))
    if backend.is_python:  # which is never asked whether it is to stop, and killed in the end
        assert found in (plain(LARGE[0]), plain(LARGE[1]))
    else:
        assert found == plain(LARGE[state == pb.Save.SUCCEEDED])
    backend.save(LARGE[0], path).result()
    assert backend.listed(path.parent) == [path.name]
    return state


def test_cancel(backend, folder):
    path = folder / "a"
    backend.save(LARGE[0], path).result()
    total = count(backend, folder, lambda: backend.save(LARGE[0], path).result())
    states = [cancel_at(backend, path, number) for number in sorted({1, total // 2, total})]
    if backend.is_python:
        return
    # A host process is told a moment after CancelSave has returned, and may be done by then.
    again = range(9 if backend.is_plugin else 0)
    assert states[0] == pb.Save.CANCELLED or pb.Save.CANCELLED in (
        cancel_at(backend, path, 1) for _ in again
    )


def test_progress(backend, folder):
    path = folder / "a"
    total = count(backend, folder, lambda: backend.save(LARGE[0], path).result())
    backend.steps.hold(folder, total)
    save = backend.save(LARGE[1], path)
    backend.steps.await_held()
    try:
        if not backend.is_python:  # which has no way to tell
            wait_until(lambda: get(backend, save).persisted_bytes > 0, "how far it is", 5)
    except AssertionError:
        if not backend.is_plugin:
            raise
        pytest.skip("it tells nobody how far it is; host->progress does")
    finally:
        backend.steps.release()
    save.result()
    assert get(backend, save).state == pb.Save.SUCCEEDED


def test_a_save_goes_on_beside_one_that_is_held(backend, folder):
    if backend.is_hosted:
        pytest.skip("a host process does one thing at a time")
    backend.save(STATES[0], folder / "held").result()
    backend.steps.hold(folder / "held", 1)
    held = backend.save(STATES[1], folder / "held")
    backend.save(STATES[1], folder / "other").result()
    assert plain(backend.load(folder / "other")) == plain(STATES[1])
    backend.steps.release()
    held.result()


def test_an_error_of_the_storage_is_explained(backend, folder):
    """Each step fails from the first on: that save ends with the reason, and the next goes well."""
    path = folder / "file" / "a"
    (folder / "file").write_text("")
    with pytest.raises(ckptd.CheckpointError) as caught:
        backend.save(STATES[0], path).result()
    check_error(caught.value, folder / "file")
    assert backend.save(STATES[0], folder / "b").exception() is None
