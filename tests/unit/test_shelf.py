"""Parts of models that a stage keeps: loaded once, kept while in use, forgotten in the order of use."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments.engine.model_source import ModelLoadError, ModelRef, ModelSource
from deployments.engine.stage_errors import Fault, StageError
from deployments.shelf import Shelf

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def model(name: str) -> ModelRef:
    return ModelRef(ModelSource(name), name, name, name, name)


class Loads:
    """A shelf of names. broken: the model that cannot be loaded"""

    def __init__(self, most: int) -> None:
        self.loaded: list[str] = []
        self.broken: str | None = None
        self.thread = ThreadPoolExecutor(1)
        self.shelf: Shelf[str] = Shelf(
            self.load, lambda one: one.vae, most, self.thread, (model("first"), "first"), pytest.fail
        )

    def load(self, one: ModelRef) -> str:
        self.loaded.append(one.source.path)
        if one.source.path == self.broken:
            raise ModelLoadError("it is torn")
        return one.source.path

    async def use(self, name: str) -> str:
        async with self.shelf.part(model(name)) as part:
            return part


@pytest.fixture
def loads() -> Iterator[Loads]:
    made = Loads(2)
    yield made
    made.thread.shutdown()


async def test_a_part_is_loaded_once_for_all_that_want_it_and_the_oldest_goes(loads: Loads) -> None:
    assert await asyncio.gather(*(loads.use("a") for _ in range(5))) == ["a"] * 5
    await loads.use("first")
    await loads.use("b")
    await loads.use("first")
    assert loads.loaded == ["a", "b"]
    await loads.use("a")
    assert loads.loaded == ["a", "b", "a"], "it was used longest ago when b came"


async def test_a_part_in_use_stays(loads: Loads) -> None:
    async with loads.shelf.part(model("a")):
        await loads.use("b")
        await loads.use("c")
        await loads.use("a")
    assert loads.loaded.count("a") == 1


async def test_who_leaves_while_a_part_is_loaded_takes_it_from_nobody(loads: Loads) -> None:
    leaving, staying = (asyncio.create_task(loads.use("a")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == "a"
    assert loads.loaded == ["a"]


async def test_a_broken_part_fails_those_that_want_it_and_is_tried_again(loads: Loads) -> None:
    loads.broken = "a"
    failed = await asyncio.gather(loads.use("a"), loads.use("a"), loads.use("b"), return_exceptions=True)
    assert [type(one) for one in failed] == [StageError, StageError, str]
    assert isinstance(failed[0], StageError)
    assert failed[0].fault is Fault.UNLOADABLE
    loads.broken = None
    assert await loads.use("a") == "a"
