"""The CPU time that a running application takes without load, by process.

    python -m benchmarks.idle PID [--seconds 120] [--output benchmarks/results/idle.json]

PID is that of `midstep run`. All processes under it are measured, Ray's and Midstep's. CPU time counts only
their own work, so other work on the machine hardly disturbs the figures.
"""

import argparse
import json
import re
import time
from collections import defaultdict
from pathlib import Path

import psutil

# The replicas and the driver. The rest is Ray's: its controller, proxy, daemons, dashboard.
_MIDSTEP = re.compile(r"^replica |^midstep run$")
_REPLICA = re.compile(r"ServeReplica:([^:]+:\w+)")  # application and deployment
_WORKER = re.compile(r"ray::(\w+)")  # without the method that it runs at the moment
_SCRIPT = re.compile(r"[\w-]+\.py$")


def name_of(process: psutil.Process) -> str:
    """A short name: the deployment, Ray's title of another worker, a script's name or the program's."""
    line = [part for part in process.cmdline() if part]
    if not line:
        return str(process.name())
    title = " ".join(line)
    if found := _REPLICA.search(title):
        return f"replica {found[1]}"
    if found := _WORKER.match(title):
        return found[0]
    scripts = [Path(part).name for part in line if _SCRIPT.search(part)]
    return scripts[0] if scripts else Path(line[0]).name


def cpu_seconds(pid: int) -> dict[int, tuple[str, float]]:
    """The name and the CPU time so far of a process and of all under it, by process id."""
    found: dict[int, tuple[str, float]] = {}
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
            name = "midstep run" if process == root else name_of(process)
        except psutil.NoSuchProcess:  # it has just ended
            continue
        found[process.pid] = name, times.user + times.system
    return found


def measure(pid: int, seconds: float) -> dict[str, float]:
    """Per cent of a core by name, the highest first. Leaves out processes that start or end meanwhile."""
    before, started = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    after, elapsed_s = cpu_seconds(pid), time.monotonic() - started
    shares: defaultdict[str, float] = defaultdict(float)
    for number in before.keys() & after.keys():
        name, total_s = after[number]
        shares[name] += 100 * (total_s - before[number][1]) / elapsed_s
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
