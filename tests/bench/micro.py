"""What ckptd_bench measures inside the daemon and the C++ client."""

import json
import os
import subprocess
import sys


def run(build, folder, quick):
    """A dict for each benchmark, which writes to `folder`; none where it is not built."""
    binary = os.path.join(build, "bench", "ckptd_bench")
    if not os.access(binary, os.X_OK):
        print(f"{binary} is not built: no figures of it", file=sys.stderr)
        return []
    command = [binary, "--benchmark_format=json"]
    command += [f"--benchmark_min_time={0.01 if quick else 0.2}"]
    if not quick:
        command += ["--benchmark_repetitions=3", "--benchmark_report_aggregates_only=true"]
    answer = subprocess.run(
        command,
        check=True,
        env={**os.environ, "TMPDIR": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return [
        {
            "name": one["run_name"],
            "milliseconds": one["real_time"] * {"ns": 1e-6, "us": 1e-3, "ms": 1}[one["time_unit"]],
            "bytes_per_second": one.get("bytes_per_second"),
        }
        for one in json.loads(answer.stdout)["benchmarks"]
        if not one.get("error_occurred") and one.get("aggregate_name", "median") == "median"
    ]
