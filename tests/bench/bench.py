"""Measures what a save costs, beside the limits of the machine in the same minute.

Each sample has its own limits, measured right before it, since a shared disk bursts and then
throttles; the ratios are medians of the samples' own ratios. The order rotates from round to round.
Each tensor is changed as soon as save returns, and each file is read back and compared with what
the tensors held before.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import limits
import subjects
import torch

TENSORS = 148
FIRST, STEADY = "ckptd, first save after Reserve", "ckptd, steady"
# Of whom, what divided by what, in words, target.
TARGETS = [
    (STEADY, "stall", "memcpy1", "steady stall / memcpy", "at most", 2.0),
    (FIRST, "stall", "memcpy1", "first stall after Reserve / memcpy", "at most", 3.0),
    (STEADY, "direct", "after", "speed after save returned / raw O_DIRECT", "at least", 0.7),
]


def make_state(size):
    """Tensors of whole numbers, so that adding 1 is exact."""
    count = size // TENSORS // 4
    values = torch.arange(count, dtype=torch.float32) % 1000
    return {f"layer{i}.weight": values + i for i in range(TENSORS)}


def verify(path, state):
    loaded = torch.load(path, mmap=True, weights_only=True)
    for name, tensor in state.items():
        if not torch.equal(loaded[name] + 1, tensor):
            raise RuntimeError(f"{path}: {name} is not what was saved")


def sample(subject, state, scratch, folder):
    """One save: its stall, the time until it is durable, from the call and from its return, and
    the limits right before it. All in seconds."""
    tensors = list(state.values())
    result = limits.measure(scratch, tensors, folder)
    path = os.path.join(folder, "checkpoint.pt")
    start = time.perf_counter()
    subject.save(state, path)
    stalled = time.perf_counter()
    torch._foreach_add_(tensors, 1)
    subject.wait()
    end = time.perf_counter()
    verify(path, state)
    os.unlink(path)
    return {**result, "stall": stalled - start, "after": end - stalled, "durable": end - start}


def first_sample(args, folder):
    """The first save of a new process to a new daemon."""
    with subjects.Daemon(args.daemon, 4 * args.size) as daemon:
        command = [sys.executable, __file__, "--first", daemon.address, "--dir", folder]
        command += ["--size", str(args.size)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def run_first(address, size, folder):
    state = make_state(size)
    scratch = limits.Scratch(size)
    subject = subjects.Ckptd(address)
    subject.reserve(state)
    print(json.dumps(sample(subject, state, scratch, folder)))


def run(args, folder):
    state = make_state(args.size)
    scratch = limits.Scratch(args.size)
    with subjects.Daemon(args.daemon, 4 * args.size) as daemon:
        steady = {
            "torch.save + fsync": subjects.TorchSave(),
            "Lightning AsyncCheckpointIO": subjects.LightningAsync(),
            STEADY: subjects.Ckptd(daemon.address),
        }
        takers = {
            name: lambda subject=subject: sample(subject, state, scratch, folder)
            for name, subject in steady.items()
        }
        takers[FIRST] = lambda: first_sample(args, folder)
        for name in steady:  # what only the first save pays is no part of a steady one
            takers[name]()
        samples = {name: [] for name in takers}
        order = list(takers)
        for i in range(args.rounds):
            for name in order[i % len(order) :] + order[: i % len(order)]:
                samples[name].append(takers[name]())
            print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    return samples


def ratio(samples, above, below):
    return statistics.median(s[above] / s[below] for s in samples)


def report(samples, args):
    every = [s for several in samples.values() for s in several]
    print(f"{args.size / 1e6:.0f} MB in {TENSORS} tensors, medians of {args.rounds}, ms")
    for key, name in (
        ("memcpy1", "warm memcpy, 1 thread"),
        ("memcpy2", "warm memcpy, 2 threads"),
        ("direct", "raw O_DIRECT write, fdatasync"),
    ):
        times = [1000 * s[key] for s in every]
        print(f"  {name:32}{statistics.median(times):8.0f}  ({min(times):.0f} to {max(times):.0f})")
    print(f"  {'':32}{'stall':>8}{'/ memcpy':>10}{'durable':>9}{'/ O_DIRECT':>12}")
    for name, several in samples.items():
        stall, durable = (1000 * statistics.median(s[k] for s in several) for k in ("stall", "durable"))
        print(
            f"  {name:32}{stall:8.0f}{ratio(several, 'stall', 'memcpy1'):10.2f}"
            f"{durable:9.0f}{ratio(several, 'durable', 'direct'):12.2f}"
        )
    for name, above, below, words, bound, target in TARGETS:
        value = ratio(samples[name], above, below)
        met = value <= target if bound == "at most" else value >= target
        print(f"{words}: {value:.2f}, target {bound} {target}: {'met' if met else 'NOT MET'}")


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 MB instead of 805 MB")
    parser.add_argument("--size", type=int, default=805_306_368, help="bytes of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=pathlib.Path, default=root / "build", help="on which disk")
    parser.add_argument("--json", type=pathlib.Path, help="a file for every sample")
    parser.add_argument("--daemon", default=root / "build/bin/ckptd", help="the ckptd to start")
    parser.add_argument("--first", metavar="ADDRESS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.size = 100_000_000
    if args.first:
        run_first(args.first, args.size, args.dir)
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir) as folder:
        samples = run(args, folder)
    report(samples, args)
    if args.json:
        args.json.write_text(json.dumps({"bytes": args.size, "samples": samples}, indent=1))


if __name__ == "__main__":
    main()
