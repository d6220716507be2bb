"""Turns of isolated requests: one at a time, and each begins when its caller says so."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from deployments import isolation
from deployments.isolation import Turn, Turns


class Work:
    def __init__(self) -> None:
        self.done: list[str] = []

    async def do(self, name: str) -> str:
        self.done.append(name)
        return name


async def first(events: AsyncGenerator[Turn | str, None]) -> Turn:
    turn = await anext(events)
    assert isinstance(turn, Turn)
    return turn


def test_nothing_is_done_before_the_turn_is_begun() -> None:
    async def run() -> None:
        turns, work = Turns(), Work()
        async with aclosing(turns.isolated(lambda: work.do("a"))) as events:
            turn = await first(events)
            result = asyncio.ensure_future(anext(events))
            for _ in range(10):
                await asyncio.sleep(0)
            turns.begin(Turn("another's"))
            assert work.done == []
            turns.begin(turn)
            assert await result == "a"

    asyncio.run(run())


def test_the_next_turn_comes_when_the_one_before_is_over() -> None:
    async def run() -> None:
        turns, work = Turns(), Work()
        async with (
            aclosing(turns.isolated(lambda: work.do("a"))) as one,
            aclosing(turns.isolated(lambda: work.do("b"))) as other,
        ):
            turn = await first(one)
            waiting = asyncio.ensure_future(first(other))
            turns.begin(turn)
            await anext(one)
            assert not waiting.done()
            await one.aclose()
            turns.begin(await waiting)
            assert await anext(other) == "b"

    asyncio.run(run())


def test_a_caller_that_leaves_its_turn_does_not_hold_up_the_next() -> None:
    async def run() -> None:
        turns, work = Turns(), Work()
        leaving = turns.isolated(lambda: work.do("a"))
        await first(leaving)
        await leaving.aclose()
        async with aclosing(turns.isolated(lambda: work.do("b"))) as events:
            turns.begin(await first(events))
            assert await anext(events) == "b"
        assert work.done == ["b"]

    asyncio.run(run())


def test_a_turn_that_is_not_begun_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "MAX_WAIT_S", 0.0)

    async def run() -> None:
        turns = Turns()
        async with aclosing(turns.isolated(lambda: Work().do("a"))) as events:
            await first(events)
            with pytest.raises(TimeoutError):
                await anext(events)

    asyncio.run(run())
