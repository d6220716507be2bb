"""The job store's databases: created once; full, locked or unreachable, and working again."""

import asyncio
import gc
import itertools
import json
import logging
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event, make_url, text

from serve.errors import InvalidRequestError, JobStoreUnavailableError, StorageFullError
from serve.jobs.database import MIGRATIONS_FOLDER, parse_database_url
from serve.jobs.job import IdempotencyKey, JobState, StoredPreview
from serve.jobs.objects import ObjectStore
from serve.jobs.records import Claim, Progress
from serve.jobs.store import JobStore
from serve.jobs.tables import metadata
from serve.jobs.uploads import NewFile, Uploads
from tests.job_stores import (
    LONG,
    MODEL,
    History,
    claim_one,
    counted,
    describe,
    in_loop,
    new_job,
    opened,
    state_of,
    told,
    webhook,
)
from tests.postgresql import Way, disconnect_all, execute

STARTING = JobState.STARTING


def downgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER))
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


@in_loop
async def test_the_migrations_make_the_tables_that_the_code_has(url: str) -> None:
    async with opened(url) as store, store.database.reader.connect() as connection:

        def differences(sync_connection: Any) -> list[Any]:
            return compare_metadata(MigrationContext.configure(sync_connection), metadata)

        assert await connection.run_sync(differences) == []


@in_loop
async def test_jobs_from_before_there_were_owners_keep_their_idempotency_keys(url: str) -> None:
    async with opened(url) as store:
        for job_id, key in (("a", "k"), ("b", "k k"), ("c", None)):
            await store.create(new_job(job_id, key=None if key is None else IdempotencyKey(key, "f")))
        await store.create(new_job("alice's", key=IdempotencyKey("k", "f"), owner="alice"))
        async with store.database.write() as connection:
            await connection.run_sync(downgrade, "0002")
            rows = await connection.execute(text("SELECT id, idempotency_key FROM jobs"))
            assert dict(map(tuple, rows)) == {"a": "k", "b": "k k", "c": None, "alice's": None}
    async with opened(url) as store:
        for job_id, key in (("a", "k"), ("b", "k k")):
            again = await store.create(new_job("new", key=IdempotencyKey(key, "f")))
            assert (again.id, again.owner) == (job_id, "")


@in_loop
async def test_jobs_from_before_they_were_claimed_by_images_are_claimed_so(url: str) -> None:
    async with opened(url) as store:
        for job_id in "abc":
            await store.create(new_job(job_id, input={"prompt": "\x00"}))
        async with store.database.write() as connection:
            await connection.run_sync(downgrade, "0004")
            assert not (await connection.execute(text("SELECT * FROM transitions"))).all()
            for row in (await connection.execute(text("SELECT seq, request FROM jobs"))).all():
                request = json.loads(row.request)
                for name in ("model", "latent_shape", "num_calls", "work_s"):
                    del request[name]
                changed = {"seq": row.seq, "request": json.dumps(request | {"sampler": "Heun"})}
                await connection.execute(text("UPDATE jobs SET request = :request WHERE seq = :seq"), changed)
    async with opened(url) as store:
        claimed = await store.queue.claim(3, LONG)
        assert [job.id for job in claimed] == ["a", "b"], "each has two images"
        request = claimed[0].request
        assert (request.model, request.latent_shape, request.num_calls) == (MODEL, (8, 8), 19)


@in_loop
async def test_jobs_from_before_there_were_previews_go_on_and_deleted_ones_expire_there(url: str) -> None:
    async with opened(url) as store:
        for job_id in "ab":
            await store.create(new_job(job_id))
        assert await store.delete("b")
        async with store.database.write() as connection:
            await connection.run_sync(downgrade, "0007")
            completed = await connection.execute(text("SELECT id, completed_at FROM jobs"))
            assert dict(map(tuple, completed)) == {"a": None, "b": 0.0}
    async with opened(url) as store:
        [job] = await store.queue.claim(1, LONG)
        assert (job.id, job.previews, job.is_deleted) == ("a", {}, False)
        preview = StoredPreview(0, 2, "previews/a/0-0.jpg")
        await store.queue.record_progress({Claim.of(job): Progress(2, {0: preview})})
        changed = await store.get("a")
        assert changed is not None
        assert changed.previews == {0: preview}


@in_loop
async def test_several_that_open_a_new_database_at_once_agree(url: str) -> None:
    stores = [JobStore(url, describe, [MODEL]) for _ in range(4)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        for number, store in enumerate(stores):
            await store.create(new_job(str(number)))
        assert len((await stores[0].page(10)).items) == 4
    finally:
        for store in stores:
            await store.close()


@pytest.mark.parametrize(
    "url", ["jobs.db", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@host/jobs", ""]
)
def test_what_is_no_database_for_jobs_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"database|sqlite") as raised:
        parse_database_url(url)
    assert "secret" not in str(raised.value)


def test_tls_is_asked_for_as_postgresql_has_it() -> None:
    url = parse_database_url("postgres://u:secret@host/jobs?sslmode=verify-full&target_session_attrs=any")
    assert dict(url.query) == {"ssl": "verify-full", "target_session_attrs": "any"}
    with pytest.raises(ValueError, match="'channel_binding' is not an option of asyncpg") as raised:
        parse_database_url("postgresql://u:secret@host/jobs?sslmode=require&channel_binding=require")
    assert "secret" not in str(raised.value)


@in_loop
async def test_sqlite_is_set_to_lose_nothing(sqlite_url: str) -> None:
    async with opened(sqlite_url) as store, store.database.read() as connection:
        settings = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


@in_loop
async def test_sqlite_walks_through_no_jobs_that_it_is_not_asked_for(sqlite_url: str, tmp_path: Path) -> None:
    """SQLite's planner must walk neither through all jobs nor, for sorting, through the whole queue."""
    statements: dict[str, Any] = {}

    def keep(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, executemany: bool) -> None:
        if statement.startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            statements[statement] = parameters[0] if executemany else parameters

    async with opened(sqlite_url) as store:
        engines = (store.database.reader.sync_engine, store.database.writer.sync_engine)
        for engine in engines:
            event.listen(engine, "before_cursor_execute", keep)
        job = await store.create(new_job("a", webhook=webhook(), key=IdempotencyKey("k", "f")))
        await store.create(new_job("b", key=IdempotencyKey("k", "f")))
        await store.get("a")
        await store.page(10, "before-9")
        await store.cancel("nothing")
        await store.queue_position(job)
        await store.look()
        await store.housekeeping.waiting()
        claim = await claim_one(store)
        await store.queue.renew([claim], LONG)
        await store.queue.record_progress({claim: Progress(1)})
        await store.queue.record_image(claim, 0, "key", 5)
        await store.queue.retry(claim, "error")
        await store.queue.succeed(await claim_one(store))
        await told(store)
        await store.housekeeping.sweep(key_age_s=-60)
        await store.housekeeping.remove_data(await store.housekeeping.expired(-60, 10))
        await store.housekeeping.forget(await store.housekeeping.old(-60, 10))
        await store.create(new_job("c"))
        await store.delete("c")
        await store.housekeeping.remove_data(await store.housekeeping.deleted(10))
        uploads = Uploads(store.database, ObjectStore(str(tmp_path / "objects")))
        file = await uploads.keep(NewFile("alice", "a", "image/png", {}, b"bytes"))
        await uploads.get(file.id, "alice")
        await uploads.page(10, "before-9", "alice")
        await uploads.delete(file.id, "alice")
        await uploads.remove_expired()
        for engine in engines:
            event.remove(engine, "before_cursor_execute", keep)
        assert len(statements) > 15
        async with store.database.read() as connection:
            for statement, parameters in statements.items():
                explain = f"EXPLAIN QUERY PLAN {statement}"
                plan = (await connection.exec_driver_sql(explain, parameters)).all()
                under = {row.detail: row.parent for row in plan}
                assert not {"SCAN jobs", "SCAN deliveries", "SCAN files"} & under.keys(), statement
                if "ORDER BY jobs.priority DESC" in statement:
                    # The few first rows are sorted once more, to be counted together.
                    search = under["SEARCH jobs USING INDEX ix_jobs_queue (model=?)"]
                    assert not any("TEMP B-TREE" in row.detail for row in plan if row.parent == search)


@in_loop
async def test_sqlite_locked_by_another_is_unavailable_until_it_is_free(
    sqlite_url: str, history: History
) -> None:
    async with opened(f"{sqlite_url}?timeout=0.05") as store:
        await store.create(new_job("a"))
        with closing(sqlite3.connect(make_url(sqlite_url).database or "", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(20):  # more often than there are connections in the pool
                with pytest.raises(JobStoreUnavailableError) as raised:
                    await store.create(new_job("b"))
            assert (raised.value.status, raised.value.retry_after_s) == (503, 1)
            assert await state_of(store, "a") is STARTING  # readers are not affected
            other.execute("ROLLBACK")
        assert await store.get("b") is None
        await store.create(new_job("b"))
        assert history.states("b") == [(STARTING, 0)]


@in_loop
async def test_what_is_canceled_midway_is_written_whole_or_not_at_all(url: str, history: History) -> None:
    """A canceled caller, as when a client leaves, delays no others, but closing waits for its work."""
    async with opened(url) as store:
        for number in range(60):
            task = asyncio.create_task(store.create(new_job(f"job {number}")))
            await asyncio.sleep(0.0002 * (number % 20))
            task.cancel()
            await asyncio.wait([task])
    async with opened(url) as store:
        jobs = (await store.page(100)).items
        assert jobs
        assert [history.states(job.id) for job in jobs] == [[(STARTING, 0)]] * len(jobs)
        assert await counted(store) == {STARTING: len(jobs)}


@in_loop
async def test_errors_are_looked_at_where_the_caller_has_left(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors that were meant for the caller are not logged, as asyncio would; a fault of ours is."""
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)  # Serve may have turned it off
    gc.collect()  # what other tests have left behind
    caplog.clear()

    async def fail_with(error: Exception) -> None:
        await asyncio.sleep(0)
        raise error

    async with opened(sqlite_url) as store:
        for error in (InvalidRequestError("no cursor"), RuntimeError("a mistake of ours")):
            call = asyncio.create_task(store.database.finish(fail_with(error)))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
    gc.collect()
    # A record may be captured twice.
    assert {str(record.exc_info and record.exc_info[1]) for record in caplog.records} == {"a mistake of ours"}


@in_loop
async def test_a_full_disk_under_sqlite_loses_nothing_that_was_accepted(
    sqlite_url: str, history: History
) -> None:
    async with opened(sqlite_url) as store:
        accepted: list[str] = []

        async def fill() -> None:
            for number in itertools.count():
                new = new_job(f"job {len(accepted)} {number}", input={"prompt": "long " * 2000})
                accepted.append((await store.create(new)).id)

        async def limit_pages(pages: int) -> None:
            async with store.database.write() as connection:
                await connection.execute(text(f"PRAGMA max_page_count = {pages}"))

        await limit_pages(200)
        with pytest.raises(StorageFullError) as raised:
            await fill()
        assert raised.value.status == 507
        assert len(accepted) > 3
        await limit_pages(1_000_000)
        accepted.append((await store.create(new_job("after"))).id)
        assert [job.id for job in reversed((await store.page(1000)).items)] == accepted
        assert [history.states(job_id) for job_id in accepted] == [[(STARTING, 0)]] * len(accepted)


@in_loop
async def test_a_full_disk_under_postgresql_is_told_apart(postgresql_url: str) -> None:
    async with opened(postgresql_url) as store:
        await store.create(new_job("a"))
        await execute(
            postgresql_url,
            """
            CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON jobs EXECUTE FUNCTION full_disk();
            """,
        )
        for change in (store.create(new_job("b")), store.cancel("a"), store.queue.claim(1, LONG)):
            with pytest.raises(StorageFullError):
                await change
        await execute(postgresql_url, "DROP TRIGGER full_disk ON jobs")
        assert await state_of(store, "a") is STARTING
        assert await store.get("b") is None
        await store.create(new_job("b"))


@in_loop
async def test_postgresql_that_goes_away_is_unavailable_until_it_is_back(postgresql_url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        way = Way(postgresql_url, Path(folder))
        async with opened(way.url) as store:
            await store.create(new_job("a"))
            await way.close()
            for _ in range(20):
                with pytest.raises(JobStoreUnavailableError):
                    await store.create(new_job("b"))
                with pytest.raises(JobStoreUnavailableError):
                    await store.get("a")
            way.open()
            assert await state_of(store, "a") is STARTING
            await store.create(new_job("b"))
            # A disconnection while idle has no effect; in a transaction nothing is written.
            await disconnect_all(postgresql_url)
            await store.create(new_job("c"))

            async def change_and_lose() -> None:
                async with store.database.write() as connection:
                    await connection.execute(text("UPDATE jobs SET state = 'failed'"))
                    await disconnect_all(postgresql_url)
                    await connection.execute(text("UPDATE jobs SET error = 'lost'"))

            with pytest.raises(JobStoreUnavailableError):
                await change_and_lose()
            assert await counted(store) == {STARTING: 3}
