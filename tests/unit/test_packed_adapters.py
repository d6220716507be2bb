"""Adapters as stages read them when they are first needed."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.adapters.files import digest_of
from deployments.engine.adapters import AdapterRef, AdapterUse
from deployments.engine.model_source import ModelRef, Placement
from deployments.engine.stage_errors import Fault, StageError
from deployments.packed_adapters import TEXT_ENCODERS, UNET, Packed, PackedAdapters
from tests.adapter_folders import SHAPES, add

MODEL = ModelRef(SHAPES, "model", "text", "unet", "vae")


def packed(parts: tuple[str, ...], adapter: AdapterRef) -> Packed:
    async def read() -> dict[str, Packed]:
        return await PackedAdapters(parts, Placement("cpu"), 1e9).of([AdapterUse(adapter, 1.0)], MODEL)

    return asyncio.run(read())[adapter.digest]


@pytest.fixture
def adapter(tmp_path: Path) -> AdapterRef:
    path = add(tmp_path, "x", unet_rank=8, text_rank=4)
    return AdapterRef("x", str(path), digest_of(path), 8, 4)


def test_each_stage_reads_its_own_parts(adapter: AdapterRef) -> None:
    assert set(packed(UNET, adapter)) == {"unet"}
    assert set(packed(TEXT_ENCODERS, adapter)) == {"text_encoder"}


@pytest.mark.parametrize(
    ("parts", "change", "words"),
    [
        (UNET, lambda one: replace(one, unet_rank=4), "it has the rank 8 in the unet, and not 4"),
        (TEXT_ENCODERS, lambda one: replace(one, text_rank=0), "the rank 4 in the text_encoder, and not 0"),
        (UNET, lambda one: replace(one, digest="ab" * 32), "was changed or removed"),
    ],
)
def test_a_file_that_is_not_what_was_accepted_fails_its_request(
    adapter: AdapterRef, parts: tuple[str, ...], change: Callable[[AdapterRef], AdapterRef], words: str
) -> None:
    with pytest.raises(StageError, match=f"The adapter x cannot be used: .*{words}") as error:
        packed(parts, change(adapter))
    assert error.value.fault is Fault.ADAPTER
