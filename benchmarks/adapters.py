"""What adapters (LoRAs) cost a forward on this machine's CPU, with the embedded model. All ways take turns.

    OMP_NUM_THREADS=1 python -m benchmarks.adapters --output FILE

A mixed forward has rows of several adapters and rows without, against a forward of as many rows without a
bank. The other way to serve them is a forward for each adapter's rows, and one for those without. The
adapters change all layers of the U-Net, or its transformers alone, as most do.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.bench.results import new_results
from deployments.engine.adapters import LowRank, targets_of
from deployments.engine.bank import AdapterBank, Block, Layout, RowAdapters, Scales
from deployments.engine.conditions import MAX_TOKENS
from deployments.engine.model_source import ModelSource
from deployments.engine.models import load_unet_module

ROWS, SHAPE = 16, (16, 16)
# (different adapters, rank of each): with the default of adapters.max_rank no more are in one forward
ADAPTERS = ((1, 16), (2, 16), (2, 32), (2, 64), (8, 16))
MAX_RANK = 128
CHANGED = ("all", "transformers")  # layers
PLAIN = "plain"


class Forwards:
    """The embedded model's U-Net without a bank, and with one for some of its layers; inputs of ROWS rows.

    changed: the layers that the adapters change
    """

    def __init__(self, path: str, changed: str) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.plain, self.banked = (
            load_unet_module(ModelSource(path), torch.float32).to(memory_format=torch.channels_last)
            for _ in range(2)
        )
        all_layers = targets_of(self.banked)
        transformers = {name: target for name, target in all_layers.items() if ".attentions." in name}
        self._changed = {"transformers": transformers, "all": all_layers}[changed]
        self._layout = Layout.of(all_layers)
        self._bank = AdapterBank(self._layout, MAX_RANK, torch.device("cpu"), torch.float32)
        self._bank.attach(self.banked)
        config = self.plain.config
        self._latents = torch.randn(ROWS, config.in_channels, *SHAPE)
        self._embeds = torch.randn(ROWS, MAX_TOKENS, config.cross_attention_dim)

    def run(self, module: torch.nn.Module, rows: int, scales: Scales) -> None:
        timesteps = torch.full((rows,), 500)
        with torch.inference_mode(), self._bank.scaled(scales.transformers, scales.others):
            module(self._latents[:rows], timesteps, encoder_hidden_states=self._embeds[:rows])

    def ways(self, distinct: int, rank: int) -> dict[str, Callable[[], None]]:
        """Forwards of ROWS rows, of which as many have an adapter as there are different ones.

        grouped: a forward for each adapter's row, with the adapter in the bank's first rows, and one for the
        rows without
        """
        blocks = [self._block(f"adapter {number}", rank) for number in range(distinct)]
        rows = [RowAdapters(1, [(block, 1.0)]) for block in blocks]
        scales = self._bank.load([*rows, RowAdapters(ROWS - distinct)], distinct * len(blocks[0].rows))
        alone = self._bank.load(rows[:1], len(blocks[0].rows))
        without = Scales(torch.zeros(ROWS, 0), torch.zeros(ROWS, 0))

        def grouped() -> None:
            for _ in blocks:
                self.run(self.banked, 1, alone)
            self.run(self.banked, ROWS - distinct, without)

        return {
            PLAIN: lambda: self.run(self.plain, ROWS, without),
            "none active": lambda: self.run(self.banked, ROWS, without),
            "mixed": lambda: self.run(self.banked, ROWS, scales),
            "grouped": grouped,
        }

    def _block(self, name: str, rank: int) -> Block:
        """A random adapter."""
        weights = {
            layer: LowRank(
                0.01 * torch.randn(rank, target.width), 0.01 * torch.randn(target.num_outputs, rank)
            )
            for layer, target in self._changed.items()
        }
        return self._layout.pack(name, rank, weights, torch.float32)


def seconds(work: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of this thread by round: other work on the machine does not count as such, though it
    slows down memory. They take turns."""
    for one in work.values():
        one()
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            began = time.thread_time()
            one()
            found[name].append(time.thread_time() - began)
    return found


def ratios(found: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Each against a plain forward: of the least times, which others' work disturbed least, and the median of
    the rounds' ratios."""
    plain = found[PLAIN]
    return {
        name: {
            "least": round(min(times) / min(plain), 3),
            "median": round(statistics.median(a / b for a, b in zip(times, plain, strict=True)), 3),
        }
        for name, times in found.items()
        if name != PLAIN
    }


def measure(path: str, rounds: int) -> list[dict[str, Any]]:
    found = []
    for changed in CHANGED:
        forwards = Forwards(path, changed)
        for distinct, rank in ADAPTERS:
            case = {"changed": changed, "adapters": distinct, "rank": rank}
            case |= ratios(seconds(forwards.ways(distinct, rank), rounds))
            found.append(case)
            print(json.dumps(case), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "shapes"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    found = measure(args.model, args.rounds)
    of_machine = new_results("adapters", {}, [])
    written = {
        "date": of_machine.date,
        "hardware": of_machine.hardware,
        "versions": of_machine.versions,
        "rows": ROWS,
        "rounds": args.rounds,
        "to_plain": found,
    }
    if args.output is not None:
        args.output.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
