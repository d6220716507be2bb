"""The job store's tables. Migrations change them: see `serve.jobs.migrations`."""

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    and_,
    false,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class now_s(FunctionElement[float]):
    """Seconds since the epoch on the database's clock, which all runners share."""

    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_on_sqlite(element: now_s, compiler: SQLCompiler, **options: Any) -> str:
    # unixepoch('subsec') only came with SQLite 3.42. 2440587.5 is the epoch's Julian day.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_on_postgresql(element: now_s, compiler: SQLCompiler, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


class JsonText(TypeDecorator[Any]):
    """JSON in ASCII: PostgreSQL's text has neither NUL nor half a surrogate pair; clients may send both."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


metadata = MetaData()
# SQLite increments by itself only a column of exactly this type.
_Sequence = BigInteger().with_variant(Integer, "sqlite")

# owner: a client's name, empty without API keys
# idempotency_key: the owner's name, a line break, and the client's key
# seq: order by age, where created_at may be equal
# failures: attempts in a row that failed or died since its last progress
# is_begun: whether this attempt has begun or only waits for its turn: a waiting job does not kill its runner
# deaths: deaths of its runners since its last progress, begun or not
# lease_until: after this time a processing job may be taken over
# notified_at, output_notified_at: when its webhook was last told of logs and of output
# previews: the latest ones of unfinished images
# is_deleted: its client has deleted it; its data follows, and its row when jobs are forgotten
jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False, server_default=""),
    Column("model", Text, nullable=False),
    Column("request", JsonText, nullable=False),
    Column("input", JsonText, nullable=False),
    Column("base_url", Text, nullable=False),
    Column("webhook_url", Text),
    Column("webhook_events", JsonText),
    Column("deadline", Double),
    Column("idempotency_key", Text, unique=True),
    Column("fingerprint", Text),
    Column("priority", Integer, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("num_images", Integer, nullable=False, server_default="1"),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("is_begun", Boolean, nullable=False, server_default=false()),
    Column("deaths", Integer, nullable=False, server_default="0"),
    Column("lease_until", Double),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("completed_at", Double),
    Column("steps_done", Integer, nullable=False),
    Column("output", JsonText, nullable=False),
    Column("previews", JsonText, nullable=False, server_default="{}"),
    Column("error", Text),
    Column("notified_at", Double),
    Column("output_notified_at", Double),
    Column("data_removed", Boolean, nullable=False),
    Column("is_deleted", Boolean, nullable=False, server_default=false()),
)

# Most jobs are finished. A search for work must not walk through them.
_unfinished = jobs.c.completed_at.is_(None)
Index(
    "ix_jobs_queue",
    jobs.c.model,
    jobs.c.priority.desc(),
    jobs.c.seq,
    sqlite_where=_unfinished,
    postgresql_where=_unfinished,
)
Index("ix_jobs_deadline", jobs.c.deadline, sqlite_where=_unfinished, postgresql_where=_unfinished)
Index("ix_jobs_lease_until", jobs.c.lease_until, sqlite_where=_unfinished, postgresql_where=_unfinished)
_finished = jobs.c.completed_at.is_not(None)
# Only finished jobs: SQLite would otherwise find unfinished ones by state and then sort the whole queue.
Index("ix_jobs_finished", jobs.c.state, sqlite_where=_finished, postgresql_where=_finished)
Index("ix_jobs_owner", jobs.c.owner, jobs.c.seq)
Index("ix_jobs_retention", jobs.c.data_removed, jobs.c.completed_at)
_has_data_to_delete = and_(jobs.c.is_deleted.is_(True), jobs.c.data_removed.is_(False))
Index("ix_jobs_deleted", jobs.c.seq, sqlite_where=_has_data_to_delete, postgresql_where=_has_data_to_delete)
_has_key = jobs.c.idempotency_key.is_not(None)
Index("ix_jobs_key_age", jobs.c.created_at, sqlite_where=_has_key, postgresql_where=_has_key)

# Messages to webhooks. host: host of the URL; due: empty if it was given up, with the reason beside it
deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("event", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False, server_default=""),
    Column("payload", LargeBinary, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("due", Double, index=True),
    Column("reason", Text),
)

# Files that clients have uploaded. signature: unguessable, gives the bytes to its holder without a key
# is_stored: whether the object store has the whole file; until then nobody sees the file
# expires_at: when object and row are deleted; for a file that is not stored yet, when it is given up
files = Table(
    "files",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("md5", Text, nullable=False),
    Column("metadata", JsonText, nullable=False),
    Column("signature", Text, nullable=False),
    Column("is_stored", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)
Index("ix_files_owner", files.c.owner, files.c.seq)
Index("ix_files_expires_at", files.c.expires_at)

# Pictures that jobs start from. A row is written before its object and its job, and goes after an hour.
job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
)
Index("ix_job_inputs_created_at", job_inputs.c.created_at)

# Options that clients keep on the server. owner: as of a job; value: any JSON
client_options = Table(
    "client_options",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", JsonText, nullable=False),
)
