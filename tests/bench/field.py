"""The field: each subject saves the same state in turn, in a process of its own.

Each sample has its own limits, measured right beside it, since a shared disk bursts and then
throttles. The order rotates from round to round. Each tensor is changed as soon as save returns,
and each checkpoint is read back and compared with what the tensors held before.
"""

import contextlib
import functools
import random
import sys
import time

import subjects
from forked import Child, ChildError
from daemon import Daemon
from settings import median, median_ratio, remove, say
from state import SNAPSHOT

BACK_TO_BACK = 5
# What part of the state it is: the whole one takes longer than there is.
BACK_TO_BACK_PART = 4
# The part of the field's time in which steady rounds may begin.
STEADY = 0.8
# A sample of the slowest takes ten; saves back to back have been seen to hang for good.
CALL_SECONDS = 60


class Entrant:
    """One subject in its own process."""

    def __init__(self, settings, make):
        self.settings = settings
        self.state = settings.state
        self.subject = make()

    def sample(self):
        """One save, in seconds, with the limits beside it and what the file turned out to be."""
        tensors = self.state.tensors
        limits, values = self.settings.limits, list(tensors.values())
        result = {f"memcpy{threads}": limits.memcpy(values, threads) for threads in (1, 2)}
        # Whoever writes second finds a disk that has spent its burst, or is awake.
        writes_first = random.random() < 0.5
        if writes_first:
            result["direct"] = limits.direct_write_beside(values)
        path = self.settings.path()
        start = time.perf_counter()
        self.subject.save(tensors, path)
        stalled = time.perf_counter()
        self.state.step()
        self.subject.wait()
        end = time.perf_counter()
        result.update(stall=stalled - start, after=end - stalled, durable=end - start)
        result["memcpy"] = min(result["memcpy1"], result["memcpy2"])
        result["verdict"] = self._judge(path, 1, self.state)
        remove(path)
        if not writes_first:
            result["direct"] = limits.direct_write_beside(values)
        return result

    def back_to_back(self, count):
        """`count` saves of a smaller state with nothing but a step of the trainer between: what each
        became."""
        state = self.state.smaller(BACK_TO_BACK_PART)
        paths, failed = [], ""
        for _ in range(count):
            paths.append(self.settings.path())
            try:
                self.subject.save(state.tensors, paths[-1])
            except BaseException as error:
                failed = f"{type(error).__name__}: {error}"
            state.step()
        try:
            self.subject.wait()
        except BaseException as error:
            failed = f"{type(error).__name__}: {error}"
        verdicts = [self._judge(path, count - i, state) for i, path in enumerate(paths)]
        for path in paths:
            remove(path)
        return {"verdicts": verdicts, "error": failed}

    def close(self):
        self.subject.close()

    def _judge(self, path, age, state):
        try:
            loaded = self.subject.load(path, state.views_of(self.settings.scratch))
        except BaseException as error:  # DCP's CheckpointException is no Exception
            print(f"{path}: {error!r}", file=sys.stderr)
            loaded = None
        return state.judge(loaded, age)


class Row:
    """What is known of one subject."""

    def __init__(self, name):
        self.name = name
        self.samples = []
        self.first = None
        self.landed = None
        self.why = subjects.missing(name) if name in subjects.PEERS else None

    def as_dict(self):
        result = {"name": self.name, "samples": len(self.samples)}
        if self.why:
            result["why"] = self.why
        if self.first:
            result["first_stall"] = self.first["stall"]
            result["first_stall_ratio"] = self.first["stall"] / self.first["memcpy"]
        if self.samples:
            for key in ("stall", "durable", "memcpy1", "memcpy2", "direct"):
                result[key] = median(self.samples, key)
            result["stall_ratio"] = median_ratio(self.samples, "stall", "memcpy")
            result["durable_ratio"] = median_ratio(self.samples, "durable", "direct")
            every = [sample["verdict"] for sample in [self.first or self.samples[0], *self.samples]]
            bad = [verdict for verdict in every if verdict != SNAPSHOT]
            result["file"] = bad[0] if bad else SNAPSHOT
            result["wrong_files"] = len(bad)
        if self.landed:
            result["back_to_back"] = self.landed["verdicts"]
            if self.landed["error"]:
                result["back_to_back_error"] = self.landed["error"]
        return result


class Field:
    """All subjects on one state; `peers`: names of subjects.PEERS."""

    def __init__(self, settings, peers):
        self.settings = settings
        self._peers = peers
        self.rows = {name: Row(name) for name in [*peers, subjects.OURS, subjects.OURS_FIRST]}
        self.children = {}

    def run(self, share):
        """Takes about `share` of the run's time. Returns the rows."""
        with contextlib.ExitStack() as stack:
            daemon = stack.enter_context(Daemon(self.settings.daemon, self.settings.budget))
            stack.callback(self._close)
            self._start(daemon.address)
            order = [name for name, row in self.rows.items() if not row.why]
            rounds = iter(range(self.settings.rounds))
            start = time.monotonic()
            # What only the first save pays is no part of a steady one.
            self._round(order, lambda name: setattr(self.rows[name], "first", self._sample(name)))
            say("  first saves")
            taken = self.settings.repeat(
                STEADY * share, lambda: self._steady_round(order, next(rounds)), since=start
            )
            # The goals are ours, and so are what rounds are left where time has run out.
            for number in range(len(taken), self.settings.rounds):
                self._steady_round([name for name in order if name not in self._peers], number)
            # Last, for some do not survive it.
            self._round(order, self._back_to_back)
            say(f"  {BACK_TO_BACK} saves back to back")
        return list(self.rows.values())

    def _start(self, address):
        for name in self.rows:
            if name in subjects.PEERS and not self.rows[name].why:
                self.children[name] = self._child(subjects.PEERS[name][0])
        self.children[subjects.OURS] = self._child(functools.partial(subjects.Ckptd, address))
        self._first = functools.partial(self._sample_first, address)

    def _child(self, make):
        entrant = functools.partial(Entrant, self.settings, make)
        return Child(entrant, self.settings.log, timeout=CALL_SECONDS)

    def _sample(self, name):
        if name == subjects.OURS_FIRST:
            return self._first()
        return self.children[name].call("sample")

    def _sample_first(self, address):
        """The first save of a new process to a daemon whose memory is ready."""
        make = functools.partial(subjects.Ckptd, address, reserve=self.settings.state.tensors)
        child = self._child(make)
        try:
            return child.call("sample")
        finally:
            child.close()

    def _steady_round(self, order, number):
        turn = number % len(order)
        self._round(
            order[turn:] + order[:turn],
            lambda name: self.rows[name].samples.append(self._sample(name)),
        )
        say(f"  round {number + 1} of {self.settings.rounds}")

    def _back_to_back(self, name):
        if name != subjects.OURS_FIRST:
            self.rows[name].landed = self.children[name].call("back_to_back", BACK_TO_BACK)

    def _round(self, order, take):
        for name in order:
            if self.rows[name].why:
                continue
            try:
                take(name)
            except ChildError as error:
                self.rows[name].why = str(error)
                say(f"  {name}: {error}")

    def _close(self):
        for child in self.children.values():
            child.close()
