"""News of the job store: which change wakes whom, also from another process and after an outage."""

import asyncio
import subprocess
import sys

import pytest
from sqlalchemy import make_url

from serve.jobs.news import Audience
from serve.jobs.records import Claim, Progress
from tests.job_stores import LONG, in_loop, new_job, opened
from tests.postgresql import disconnect_all, execute

TIMEOUT_S = 60.0


@in_loop
async def test_everybody_hears_of_a_commit_of_another_process_on_sqlite(sqlite_url: str) -> None:
    insertion = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1]);"
        "connection.execute('CREATE TABLE something (number INTEGER)'); connection.commit()"
    )
    runner, client = asyncio.Event(), asyncio.Event()
    async with opened(sqlite_url) as store:
        with store.news.listening(Audience.RUNNERS, runner), store.news.listening(Audience.CLIENTS, client):
            await asyncio.sleep(0.2)  # creating the tables was news too
            runner.clear(), client.clear()
            file = str(make_url(sqlite_url).database)
            await asyncio.to_thread(subprocess.run, [sys.executable, "-c", insertion, file], check=True)
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.gather(runner.wait(), client.wait())


@in_loop
async def test_on_postgresql_each_hears_of_what_is_for_it(postgresql_url: str) -> None:
    runner, client = asyncio.Event(), asyncio.Event()

    async def until_only(heard: asyncio.Event, other: asyncio.Event) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await heard.wait()
        await asyncio.sleep(0.1)
        assert not other.is_set()
        heard.clear()

    async with opened(postgresql_url) as store, opened(postgresql_url) as other:
        with store.news.listening(Audience.RUNNERS, runner), store.news.listening(Audience.CLIENTS, client):
            runner.clear(), client.clear()
            while not (runner.is_set() and client.is_set()):  # until it listens
                await execute(postgresql_url, "NOTIFY midstep_runners; NOTIFY midstep_clients")
                await asyncio.sleep(0.2)
            runner.clear(), client.clear()
            await other.create(new_job("a"))
            await until_only(runner, client)
            [job] = await other.queue.claim(1, LONG)
            await until_only(client, runner)
            await other.queue.record_progress({Claim.of(job): Progress(3)})
            await until_only(client, runner)
            await other.cancel("a")
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.gather(runner.wait(), client.wait())


@in_loop
async def test_news_come_again_after_postgresql_has_hung_up(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.jobs.news._RECONNECT_S", 0.01)
    runner = asyncio.Event()
    async with opened(postgresql_url) as store, opened(postgresql_url) as other:
        with store.news.listening(Audience.RUNNERS, runner):
            for attempt in range(3):
                await disconnect_all(postgresql_url)
                runner.clear()  # listening again is news too, whenever it happens
                await other.create(new_job(f"job {attempt}"))
                async with asyncio.timeout(TIMEOUT_S):
                    await runner.wait()
