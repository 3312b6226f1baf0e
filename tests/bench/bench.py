"""Measures what a save costs here and with others, beside the limits of the machine.

Writes results.json, results.md and plot.svg, and where all was measured the README's summary.
Judges no figure: the exit code is 1 only where something of ckptd could not be measured, or a
checkpoint of it was not the snapshot; 2 for wrong usage.
"""

import argparse
import datetime
import functools
import os
import pathlib
import shutil
import signal
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE, QUICK_SIZE = 805_306_368, 33_554_432
ROUNDS, QUICK_ROUNDS = 7, 2
FIELD_SHARE = 0.55
# Enough to show that the field works, without the time that importing the others takes.
QUICK_PEERS = ("torch.save + fsync", "DCP async_save, kept stager")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a small state and few peers: proves that it works")
    add("--rows", default="", metavar="P1,P4", help="only these goals, and `field` for the peers")
    add("--size", type=int, help=f"bytes of the state; {SIZE}, or {QUICK_SIZE} with --quick")
    add("--rounds", type=int, help=f"samples of each; {ROUNDS}, or {QUICK_ROUNDS} with --quick")
    add("--minutes", type=float, default=6.8, help="takes fewer samples where that is not enough")
    add("--dir", type=pathlib.Path, default=ROOT / "build", help="on which disk")
    add("--build", type=pathlib.Path, default=ROOT / "build", help="where the binaries are")
    add("--out", type=pathlib.Path, help="a folder for the results; docs/bench, or with --quick or "
        "--rows build/bench")  # fmt: skip
    args = parser.parse_args(arguments)
    from rows import ALL

    args.rows = [name for name in args.rows.split(",") if name] or ["field", *ALL]
    unknown = sorted(set(args.rows) - {"field", *ALL})
    if unknown:
        parser.error(f"--rows: {', '.join(unknown)}: there are field, {', '.join(ALL)}")
    args.size = args.size or (QUICK_SIZE if args.quick else SIZE)
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    args.whole = not (args.quick or args.out) and set(args.rows) == {"field", *ALL}
    args.out = args.out or ROOT / ("docs/bench" if args.whole else "build/bench")
    if args.size < 1 << 20:
        parser.error(f"--size: {args.size} is less than 1 MiB")
    if not os.access(args.build / "bin/ckptd", os.X_OK):
        parser.error(f"--build: {args.build}/bin/ckptd is not there; run scripts/build")
    return args


def check_room(args):
    """Ends with a sentence where the greediest subjects would find no room."""
    from state import SHARED_DIR

    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    for what, free, states in (
        ("memory", 1024 * available, 16),
        (SHARED_DIR, shutil.disk_usage(SHARED_DIR).free, 10),
        (str(args.dir), shutil.disk_usage(args.dir).free, 7),
    ):
        if free < states * args.size:
            sys.exit(
                f"scripts/bench: {what} has {free / 1e9:.1f} GB free, and "
                f"{states * args.size / 1e9:.1f} GB are needed; use --size for a smaller state"
            )


def run_field(settings, args):
    """The subjects that were asked for; only ours where no peer was."""
    from field import Field
    from settings import say
    from subjects import PEERS

    peers = []
    if "field" in args.rows:
        peers = [name for name in PEERS if not settings.quick or name in QUICK_PEERS]
    say(f"The field: {', '.join([*peers, 'ckptd'])}")
    return Field(settings, peers).run(FIELD_SHARE)


def run_goals(settings, wanted):
    """The goals that are measured apart from the field, each group in its own process."""
    from forked import Child, ChildError
    from rows import GROUPS, Runner
    from rows.goal import unmeasured
    from settings import say

    made = []
    for group, names in GROUPS.items():
        if not set(names) & set(wanted):
            continue
        say(f"{', '.join(names)}: {group}")
        child = Child(functools.partial(Runner, settings), settings.log, timeout=300)
        try:
            made += child.call("measure", group)
        except ChildError as error:
            print(f"  {error}", file=sys.stderr)
            made += [unmeasured(name, str(error)) for name in names]
        child.close()
    return [goal for goal in made if goal.id in wanted]


def limits_of(rows):
    samples = [sample for row in rows for sample in row.samples]
    keys = ("memcpy1", "memcpy2", "direct")
    return {key: statistics.median(sample[key] for sample in samples) for key in keys}


def run(args, folder):
    import machine
    import micro
    from field import BACK_TO_BACK
    from rows import FIELD, steady
    from settings import Settings
    from state import SHARED_DIR

    load, start = machine.Load(), time.monotonic()
    log = os.path.join(args.dir, "log", "bench.log")
    os.makedirs(os.path.dirname(log), exist_ok=True)
    settings = Settings(
        args.size, args.rounds, folder, str(args.build), 60 * args.minutes, args.quick, log
    )
    rows = run_field(settings, args) if {"field", *FIELD} & set(args.rows) else []
    goals = [goal for goal in steady.goals(rows) if goal.id in args.rows]
    goals += run_goals(settings, args.rows)
    results = {
        "time": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "bytes": settings.state.nbytes,
        "seconds": time.monotonic() - start,
        "machine": machine.describe(folder, SHARED_DIR),
        "versions": machine.versions(os.path.join(args.build, "bin", "ckptctl")),
        "back_to_back": BACK_TO_BACK,
        "limits": limits_of(rows) if rows else {},
        "subjects": [row.as_dict() for row in rows],
        "goals": sorted((goal.as_dict() for goal in goals), key=lambda goal: int(goal["id"][1:])),
        "micro": micro.run(args.build, folder, args.quick) if "field" in args.rows else [],
        "samples": {row.name: row.samples for row in rows},
    }
    results["load"] = {"average_before": load.average_before, "others": load.others()}
    return results


def faults(results):
    """What is wrong with ckptd itself, in words."""
    from state import SNAPSHOT

    found = [f"{g['id']}: {g['what']}" for g in results["goals"] if g["ratio"] is None]
    for row in results["subjects"]:
        if not row["name"].startswith("ckptd"):
            continue
        verdicts = [row.get("file", row.get("why")), *row.get("back_to_back", [])]
        if any(verdict != SNAPSHOT for verdict in verdicts):
            found.append(f"{row['name']}: {', '.join(verdicts)}")
    return found


def main():
    args = parse(sys.argv[1:])
    check_room(args)
    import torch

    # So that the daemon and all files go, whatever ends the run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # This process is forked, which a process with threads of its own is not.
    torch.set_num_threads(1)
    import report
    from forked import Child

    if args.quick:  # what others run beside it would have two threads wait for each other
        Child.threads = 1
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir) as folder:
        results = run(args, folder)
    report.write(args.out, results)
    if args.whole:
        report.update_readme(ROOT / "README.md", results)
    print(report.markdown(results))
    print(f"Written to {args.out}", file=sys.stderr)
    wrong = faults(results)
    for fault in wrong:
        print(f"scripts/bench: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
