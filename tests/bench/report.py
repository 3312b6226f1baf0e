"""What a run found: results.json, results.md and plot.svg."""

import json
import pathlib

import plot
import subjects
from field import BACK_TO_BACK_PART
from state import MISSING, SNAPSHOT, TENSORS, TORN

MARKS = ("<!-- scripts/bench writes this -->", "<!-- as far as here -->")
HEAD = """# What a save costs, and what it costs elsewhere

Written by `scripts/bench`. [performance.md](../performance.md) says how it measures, and what
bounds each figure.
"""


def write(folder, results):
    """Writes the three files into `folder`, which may be missing."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(_rounded(results), indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results))
    picture = svg(results)
    if picture:
        (folder / "plot.svg").write_text(picture)


def _rounded(value):
    """To six digits, which is more than any clock here is good for."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def update_readme(path, results):
    """Puts the summary between its marks in the README."""
    path = pathlib.Path(path)
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n{summary(results)}{MARKS[1]}{after}")


def summary(results):
    """Three lines for people in a hurry. Needs ours, and a peer that is asynchronous."""
    rows = {row["name"]: row for row in results["subjects"] if "stall" in row}
    ours, first = rows[subjects.OURS], rows[subjects.OURS_FIRST]
    peers = [rows[name] for name in subjects.ASYNCHRONOUS if name in rows]
    stall = min(peers, key=lambda row: row["stall_ratio"])
    durable = min(peers, key=lambda row: row["durable_ratio"])
    return (
        f"* A save stalls the trainer for {ours['stall_ratio']:.2f} memcpys of its state "
        f"({1000 * ours['stall']:.0f} ms), the first of a process for {first['stall_ratio']:.2f}; "
        f"the best peer, {stall['name']}, {stall['stall_ratio']:.2f} and "
        f"{stall['first_stall_ratio']:.2f}.\n"
        f"* It is durable after {ours['durable_ratio']:.2f} raw O_DIRECT writes "
        f"({1000 * ours['durable']:.0f} ms); the best asynchronous peer, {durable['name']}, "
        f"{durable['durable_ratio']:.2f}.\n"
        f"* Of {results['back_to_back']} saves back to back {_landed(ours)} landed as they were; "
        + ", ".join(f"{row['name']} {_landed(row)}" for row in peers)
        + ".\n"
    )


def _landed(row):
    return row.get("back_to_back", []).count(SNAPSHOT)


def markdown(results):
    parts = [HEAD, _about(results)]
    if results["subjects"]:
        parts += ["![Stall and time to durable](plot.svg)\n", _limits(results), _field(results)]
    if results["goals"]:
        parts.append(_goals(results))
    if results["micro"]:
        parts.append(_micro(results))
    return "\n".join(parts)


def svg(results):
    """None where no subject was measured."""
    measured = [row for row in results["subjects"] if "stall" in row]
    ours = subjects.OURS
    drawn = [
        {
            "name": row["name"],
            "ours": row["name"] == ours,
            "stall": 1000 * row["stall"],
            "durable": 1000 * row["durable"],
            "first": 1000 * row["first_stall"] if "first_stall" in row else None,
        }
        for row in measured
        if row["name"] != subjects.OURS_FIRST
    ]
    if not drawn:
        return None
    for row in measured:  # ours is the median of as many processes, not of one
        if row["name"] == subjects.OURS_FIRST:
            for shown in drawn:
                if shown["ours"]:
                    shown["first"] = 1000 * row["stall"]
    limits = results["limits"]
    fastest = min(limits["memcpy1"], limits["memcpy2"])
    lines = [("memcpy", 1000 * fastest), ("O_DIRECT", 1000 * limits["direct"])]
    title = f"{results['bytes'] / 1e6:.0f} MB in {TENSORS} tensors, {_cores(results)}, CPU tensors"
    return plot.draw(sorted(drawn, key=lambda row: row["stall"]), lines, title)


def _cores(results):
    return f"{results['machine']['cores']} cores"


def _about(results):
    machine, load = results["machine"], results["load"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{results['time']}, in {results['seconds']:.0f} s; {results['bytes'] / 1e6:.0f} MB of "
        f"float32 in {TENSORS} tensors unless said.\n\n"
        f"* **Machine**: {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, Linux {machine['kernel']}; disk "
        f"{machine['disk']}, staging in {machine['pool']}; huge pages {machine['huge_pages']}, "
        f"in shared memory {machine['huge_pages_in_shared_memory']}; idle pages are taken away by "
        f"{', '.join(machine['reclaim']) or 'nothing'}.\n"
        f"* **Load**: {load['average_before']:.1f} before the run; others took {load['others']:.0%} "
        "of the machine during it.\n"
        f"* **Versions**: Python {machine['python']}, {versions}.\n"
    )


def _limits(results):
    limits = results["limits"]
    return (
        "Limits, medians of those beside each sample: "
        f"warm memcpy into shared memory {1000 * limits['memcpy1']:.0f} ms with one thread, "
        f"{1000 * limits['memcpy2']:.0f} ms with two; raw O_DIRECT write and fdatasync "
        f"{1000 * limits['direct']:.0f} ms.\n"
    )


def _field(results):
    lines = [
        "## The field\n",
        "Milliseconds; medians, and medians of each sample's own ratios: stall ÷ the faster "
        "memcpy, durable ÷ O_DIRECT.\n"
        "Each tensor is changed as soon as save returns; *file* is what was then read back.\n"
        f"*Back to back*: with a state of {results['bytes'] / BACK_TO_BACK_PART / 1e6:.0f} MB.\n",
        "| | first stall | ÷ memcpy | stall | ÷ memcpy | durable | ÷ O_DIRECT | n | file "
        f"| {results['back_to_back']} back to back |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_subject(row) for row in results["subjects"]]) + "\n"


def _subject(row):
    def number(key, form, scale=1.0):
        return form.format(scale * row[key]) if key in row else ""

    cells = [
        f"**{row['name']}**" if row["name"].startswith("ckptd") else row["name"],
        number("first_stall", "{:.0f}", 1000),
        number("first_stall_ratio", "{:.2f}"),
        number("stall", "{:.0f}", 1000),
        number("stall_ratio", "{:.2f}"),
        number("durable", "{:.0f}", 1000),
        number("durable_ratio", "{:.2f}"),
        str(row["samples"]),
        _files(row),
        _back_to_back(row),
    ]
    return f"| {' | '.join(cells)} |"


def _files(row):
    if "file" not in row:
        return row.get("why", "")
    return row["file"] if row["file"] == SNAPSHOT else f"**{row['file']}**, {row['wrong_files']}"


def _back_to_back(row):
    verdicts = row.get("back_to_back", [])
    if not verdicts:
        return row.get("why", "") if row["samples"] else ""
    counts = ((verdicts.count(what), what) for what in (SNAPSHOT, TORN, MISSING))
    text = ", ".join(f"{count} {what}" for count, what in counts if count)
    if len(set(verdicts)) > 1 or verdicts[0] != SNAPSHOT:
        return text + (", with an error" if "back_to_back_error" in row else ", no error")
    return text


def _goals(results):
    lines = [
        "## Goals\n",
        "| | what | figure | against | limit | ratio | goal | | n |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_goal(row) for row in results["goals"]]) + "\n"


def _goal(row):
    if row["ratio"] is None:
        return f"| {row['id']} | not measured: {row['what']} | | | | | | | |"
    scale, unit = (1000, "ms") if row["unit"] == "s" else (1, row["unit"])
    what = row["what"] + (f" ({row['note']})" if row["note"] else "")
    limit = f"{plot.short(scale * row['limit_figure'])} {unit}" if row["limit_figure"] else ""
    cells = [
        row["id"],
        what,
        f"{plot.short(scale * row['figure'])} {unit}",
        row["limit"],
        limit,
        plot.short(row["ratio"]) if row["limit"] else "",
        f"{row['bound']} {row['goal']:g}",
        "met" if row["met"] else "**not met**",
        str(row["samples"]),
    ]
    return f"| {' | '.join(cells)} |"


def _micro(results):
    lines = [
        "## Inside the daemon and the C++ client\n",
        "`ckptd_bench`, medians of its repetitions.\n",
        "| | time, ms | GB/s |",
        "|---|---|---|",
    ]
    for row in results["micro"]:
        speed = f"{row['bytes_per_second'] / 1e9:.2f}" if row.get("bytes_per_second") else ""
        lines.append(f"| {row['name']} | {row['milliseconds']:.3g} | {speed} |")
    return "\n".join(lines) + "\n"
