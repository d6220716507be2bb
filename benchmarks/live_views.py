"""What open streams of the live status cost: the CPU time of each process for each stream, and the latency of
images beside them.

    python -m benchmarks.live_views PID --url http://127.0.0.1:8000

PID is that of the `midstep run` that serves the URL. The same load runs without and with streams, in turns.
"""

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS
from benchmarks.idle import cpu_seconds
from cluster.bench.arrivals import poisson
from cluster.bench.load import READ_BUFFER_BYTES, Target, run_load
from cluster.bench.mix import Mix, plan
from cluster.bench.report import summarize

STEPS = 20
SHOWN = 5  # processes


@dataclass
class Measured:
    """The sums over all runs with one number of streams. cpu_s: by process"""

    latencies_s: list[float] = field(default_factory=list)
    cpu_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    elapsed_s: float = 0.0
    num_bytes: int = 0

    @property
    def mean_s(self) -> float:
        return statistics.mean(self.latencies_s)

    @property
    def p95_s(self) -> float:
        return statistics.quantiles(self.latencies_s, n=20)[-1]

    def share(self, process: str) -> float:
        """The share of a core that it takes."""
        return self.cpu_s[process] / self.elapsed_s


async def watch(session: aiohttp.ClientSession, url: str, measured: Measured) -> None:
    async with session.get(f"{url}/v1/status/stream") as response:
        response.raise_for_status()
        async for chunk in response.content.iter_any():
            measured.num_bytes += len(chunk)


@asynccontextmanager
async def watching(url: str, num_streams: int, measured: Measured) -> AsyncIterator[None]:
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, read_bufsize=READ_BUFFER_BYTES
    ) as session:
        streams = [asyncio.create_task(watch(session, url, measured)) for _ in range(num_streams)]
        try:
            yield
        finally:
            for stream in streams:
                stream.cancel()
            for ended in await asyncio.gather(*streams, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError), f"a stream has ended: {ended!r}"


async def measure(pid: int, url: str, num_streams: int, due_s: Sequence[float], into: Measured) -> None:
    mix = Mix(prompts=PROMPTS, num_inference_steps={STEPS: 1.0}, guidance_scales={GUIDANCE_SCALE: 1.0})
    async with watching(url, num_streams, into):
        await asyncio.sleep(2.0)
        before, began = cpu_seconds(pid), time.monotonic()
        outcomes = await run_load(Target(url), plan(due_s, mix, seed=1))
        after = cpu_seconds(pid)
        into.elapsed_s += time.monotonic() - began
    assert set(summarize(outcomes).counts) == {"completed"}, summarize(outcomes).counts
    into.latencies_s += [outcome.latency_s for outcome in outcomes]
    for number in before.keys() & after.keys():
        name, total_s = after[number]
        into.cpu_s[name] += total_s - before[number][1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pid", type=int)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1.0, help="images/s")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of each run")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    without, beside = Measured(), Measured()
    for done in range(args.rounds):
        due_s = poisson(args.rate, args.duration, seed=done)
        for num_streams, into in ((0, without), (args.streams, beside)):
            asyncio.run(measure(args.pid, args.url.rstrip("/"), num_streams, due_s, into))
    print(
        f"{len(beside.latencies_s)} images, without and beside {args.streams} streams: "
        f"mean {1000 * without.mean_s:.0f} and {1000 * beside.mean_s:.0f} ms, "
        f"p95 {1000 * without.p95_s:.0f} and {1000 * beside.p95_s:.0f} ms; "
        f"{beside.num_bytes / beside.elapsed_s / args.streams / 1000:.1f} kB/s for each stream"
    )
    added = {name: beside.share(name) - without.share(name) for name in beside.cpu_s}
    for name in sorted(added, key=lambda one: -added[one])[:SHOWN]:
        print(
            f"{100 * without.share(name):6.2f} % of a core, {100 * beside.share(name):6.2f} % beside the "
            f"streams, {100 * added[name] / args.streams:6.3f} % for each  {name}"
        )


if __name__ == "__main__":
    main()
