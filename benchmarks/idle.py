"""The CPU time that a running application takes without load, by process.

    python -m benchmarks.idle PID [--seconds 120] [--output benchmarks/results/idle.json]

PID is the one of `midstep run`. All processes under it are measured: Ray's and Midstep's. CPU time counts
only what they did themselves, so that other work on the machine hardly disturbs the figures.
"""

import argparse
import json
import re
import time
from collections import defaultdict
from pathlib import Path

import psutil

# The replicas and the driver; all else is Ray's: its controller, proxy, daemons, dashboard.
_MIDSTEP = re.compile(r"ray::ServeReplica|midstep run")
_SCRIPT = re.compile(r"[\w-]+\.py$")


def name_of(process: psutil.Process) -> str:
    """A short name: Ray's title of a worker, a script's name or the program's."""
    line = [part for part in process.cmdline() if part]
    if not line:
        return str(process.name())
    if line[0].startswith("ray"):
        return " ".join(line).split("(")[0].strip()
    scripts = [Path(part).name for part in line if _SCRIPT.search(part)]
    return scripts[0] if scripts else Path(line[0]).name


def cpu_seconds(pid: int) -> dict[tuple[int, str], float]:
    """The CPU time so far of a process and of all under it, by process id and name."""
    found: dict[tuple[int, str], float] = {}
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
            name = "midstep run" if process == root else name_of(process)
            found[process.pid, name] = times.user + times.system
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return found


def measure(pid: int, seconds: float) -> dict[str, float]:
    """Per cent of a core by name, the most first. Processes that begin or end meanwhile are left out."""
    before, started = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    after, elapsed_s = cpu_seconds(pid), time.monotonic() - started
    shares: defaultdict[str, float] = defaultdict(float)
    for (number, name), total_s in after.items():
        if (number, name) in before:
            shares[name] += 100 * (total_s - before[number, name]) / elapsed_s
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pid", type=int)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    shares = measure(options.pid, options.seconds)
    midstep = sum(share for name, share in shares.items() if _MIDSTEP.search(name))
    for name, share in shares.items():
        print(f"{share:6.2f} %  {name}")
    print(
        f"{sum(shares.values()):6.2f} %  in all, of one core; {midstep:.2f} % of it Midstep's own processes"
    )
    if options.output:
        result = {"seconds": options.seconds, "percent_of_a_core": shares, "midstep_percent": midstep}
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
