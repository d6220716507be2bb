"""Adapters that are read when requests need them, within the memory that there is for them."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deployments.adapters.files import digest_of, read_adapter_file
from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.adapters import AdapterRef, AdapterUse, padded_rank
from deployments.engine.model_source import ModelRef, ModelSource, Placement
from deployments.engine.stage_errors import Fault, StageError
from deployments.packed_adapters import TEXT_ENCODERS, UNET, PackedAdapters
from tests.adapter_files import kohya, save

CPU = Placement(device="cpu")
RANK = 2
MiB = 2**20


class Adapters:
    """Files for one model, and what is read of them."""

    def __init__(self, folder: Path, model: Path) -> None:
        source = ModelSource(str(model))
        self.folder = folder
        self.model = ModelRef(source, "digest", "text", "unet", "vae")
        self.targets: ModelTargets = targets_of_model(source)
        self.failures: list[Fault] = []

    def packed(self, parts: tuple[str, ...] = UNET, max_bytes: float = 64 * MiB) -> PackedAdapters:
        return PackedAdapters(parts, CPU, max_bytes, lambda fault, _: self.failures.append(fault))

    def use(self, name: str) -> AdapterUse:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            torch.manual_seed(len(name))
            save(path, kohya(self.targets, self.targets.parts, RANK))
        return self.used(path)

    def used(self, path: Path) -> AdapterUse:
        file = read_adapter_file(path, self.targets)
        ref = AdapterRef(path.stem, str(path), digest_of(path), file.unet_rank, file.text_rank)
        return AdapterUse(ref, 1.0)


def remove(use: AdapterUse) -> None:
    Path(use.adapter.path).unlink()


@pytest.fixture
def adapters(tmp_path: Path, model_folder: Callable[[str], Path]) -> Adapters:
    return Adapters(tmp_path, model_folder("sdxl"))


def test_each_part_is_read_from_the_file_once(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        one = adapters.use("one")
        packed = adapters.packed(TEXT_ENCODERS)
        async with packed.of([one], adapters.model) as found:
            assert set(found[one.adapter.digest]) == set(TEXT_ENCODERS)
            [rows] = {len(block.rows) for block in found[one.adapter.digest].values()}
            assert rows == padded_rank(RANK)
        remove(one)
        async with packed.of([one], adapters.model) as found:  # it is still there
            assert set(found[one.adapter.digest]) == set(TEXT_ENCODERS)

    asyncio.run(run())
    assert adapters.failures == []


def test_requests_wait_while_others_use_up_the_memory(adapters: Adapters) -> None:
    async def run() -> None:
        first, second, third = (adapters.use(name) for name in ("a", "bb", "ccc"))
        packed = adapters.packed(max_bytes=1)  # each goes alone
        order: list[str] = []
        came, leave = asyncio.Event(), asyncio.Event()

        async def needs(name: str, *uses: AdapterUse) -> None:
            async with packed.of(uses, adapters.model):
                order.append(name)
                came.set()
                await leave.wait()
            order.append(f"{name} left")

        tasks = [asyncio.create_task(needs("first", first))]
        await came.wait()
        tasks += [
            asyncio.create_task(needs("both", second, third)),
            asyncio.create_task(needs("first again", first)),
        ]
        await asyncio.sleep(0.05)
        assert order == ["first"]
        tasks[1].cancel()  # one that leaves while it waits holds up nobody
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["first", "first left", "first again", "first again left"]
        async with packed.of([second, third], adapters.model) as found:
            assert len(found) == 2

    asyncio.run(run())


def test_an_adapter_that_cannot_be_used_is_named_and_not_read_again(adapters: Adapters) -> None:
    good = adapters.use("good")
    state = load_file(good.adapter.path)
    ups = [tensor for key, tensor in state.items() if key.startswith("lora_unet_") and "lora_up" in key]
    ups[0].fill_(float("nan"))
    bad = adapters.used(save(adapters.folder / "bad.safetensors", state))
    changed = adapters.use("changed")
    Path(changed.adapter.path).write_bytes(Path(good.adapter.path).read_bytes())

    async def run() -> None:
        packed = adapters.packed()

        async def fails(use: AdapterUse, words: str) -> None:
            with pytest.raises(StageError, match=words) as raised:
                async with packed.of([good, use], adapters.model):
                    pass
            assert raised.value.fault is Fault.ADAPTER

        await fails(bad, "The adapter bad cannot be used: bad.safetensors has values that are not finite")
        remove(bad)
        await fails(bad, "values that are not finite")  # the file is not looked at
        await fails(changed, "changed or removed")
        async with packed.of([good], adapters.model) as found:
            assert found[good.adapter.digest]

    asyncio.run(run())
    assert adapters.failures == [Fault.ADAPTER] * 3
