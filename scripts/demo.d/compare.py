"""Proves what the demo claims, and prints its table.

usage: compare.py CHECKPOINTS REPORTS

Knows nothing of ckptd: it opens the checkpoints with torch.load alone.
"""

import datetime
import json
import pathlib
import re
import statistics
import sys

import torch


def fail(sentence):
    sys.exit(f"demo: {sentence}")


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def prove_equal(checkpoints, reports):
    resumed, whole = (reports[name]["weights"] for name in ("interrupted", "uninterrupted"))
    print(f"Final weights, SHA-256   killed and resumed {resumed}")
    print(f"                         uninterrupted      {whole}")
    if resumed != whole:
        fail("the resumed training ended with other weights than the uninterrupted one")
    for name in ("torch", "async"):
        if reports[name]["weights"] != whole:
            fail(f"the training with the plugin {name} ended with other weights")

    files = [checkpoints / name / "last.ckpt" for name in ("interrupted", "uninterrupted")]
    a, b = (torch.load(file, weights_only=True) for file in files)
    for key in ("state_dict", "optimizer_states", "global_step"):
        if not equal(a[key], b[key]):
            fail(f"{files[0]} and {files[1]} differ in {key}")
    states = a["optimizer_states"][0]["state"].values()
    tensors = [*a["state_dict"].values(), *(t for s in states for t in s.values())]
    size = sum(t.nbytes for t in tensors)
    if size < 50_000_000:
        fail(f"the state has only {size} bytes")
    print(f"Equal, bit for bit; so are the weights and Adam moments, {size / 1e6:.0f} MB, in both")
    print("last.ckpt, opened by torch.load(weights_only=True).\n")


def seconds(timestamp):
    # Nanoseconds are more than Python 3.11's parser takes.
    timestamp = re.sub(r"(\.\d{6})\d*Z", r"\1Z", timestamp).replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(timestamp).timestamp()


def sidecar_durable(report, saves):
    """From each call of save_checkpoint to the end that ckptd noted for its save."""
    saves = sorted(saves, key=lambda save: seconds(save["createTime"]))
    started = report["started"]
    if [save["state"] for save in saves] != ["SUCCEEDED"] * len(started):
        fail(f"{len(started)} saves were made, but ckptd lists {[s['state'] for s in saves]}")
    return [seconds(save["endTime"]) - start for save, start in zip(saves, started)]


def print_table(reports, saves):
    reports["uninterrupted"]["durable"] = sidecar_durable(reports["uninterrupted"], saves)
    rows = [
        ("TorchCheckpointIO", reports["torch"]),
        ("AsyncCheckpointIO", reports["async"]),
        ("SidecarCheckpointIO", reports["uninterrupted"]),
    ]
    print("plugin               saves  median stall  longest stall  time to durable  total")
    for name, r in rows:
        stalls = [1000 * s for s in r["stalls"]]
        print(
            f"{name:20} {len(stalls):5}  {statistics.median(stalls):9.1f} ms"
            f"  {max(stalls):10.1f} ms  {1000 * statistics.median(r['durable']):12.0f} ms"
            f"  {r['total']:4.1f} s"
        )
    print(
        "\nstall: how long save_checkpoint held the trainer up. time to durable: median, from that\n"
        "call until file and folder were flushed to the disk. ckptd does so itself, and notes when;\n"
        "neither stock plugin does, so the demo calls fsync when they have written, aside from the\n"
        "trainer. total: trainer.fit, with all its saves written.\n"
    )


def main():
    checkpoints, run = map(pathlib.Path, sys.argv[1:])
    names = ("uninterrupted", "interrupted", "torch", "async")
    reports = {name: json.loads((run / f"{name}.json").read_text()) for name in names}
    prove_equal(checkpoints, reports)
    print_table(reports, json.loads((run / "saves.json").read_text())["saves"])


if __name__ == "__main__":
    main()
