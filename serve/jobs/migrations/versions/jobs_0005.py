"""Claims by model and number of images; requests hold derived values; the log replaces the history."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_UNFINISHED = sa.text("completed_at IS NULL")


def upgrade() -> None:
    op.drop_table("transitions")
    op.add_column("jobs", sa.Column("num_images", sa.Integer(), nullable=False, server_default="1"))
    _fill()
    _make_queue("model", sa.text("priority DESC"), "seq")


def downgrade() -> None:
    _make_queue(sa.text("priority DESC"), "seq")
    op.drop_column("jobs", "num_images")
    op.create_table(
        "transitions",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text()),
    )
    op.create_index("ix_transitions_job_id", "transitions", ["job_id"])


def _fill() -> None:
    """Done here and not in SQL, because PostgreSQL's JSON refuses some input that clients have sent."""
    connection = op.get_bind()
    names = ("seq", "model", "request", "num_images")
    jobs = sa.table("jobs", *(sa.column(name) for name in names))
    rows = connection.execute(sa.select(jobs.c.seq, jobs.c.model, jobs.c.request)).all()
    for row in rows:
        request = json.loads(row.request)
        steps = request["num_inference_steps"]
        # In every model served so far a latent is 8 pixels wide.
        known = {
            "model": row.model,
            "latent_shape": [request["height"] // 8, request["width"] // 8],
            "num_calls": _num_calls(request["sampler"], steps),
        }
        connection.execute(
            sa.update(jobs)
            .where(jobs.c.seq == row.seq)
            .values(request=json.dumps(known | request), num_images=request["num_images"])
        )


def _num_calls(sampler: str, steps: int) -> int:
    match sampler:
        case "Heun" | "KDPM2":
            return 2 * steps - 1
        case "PLMS":
            return steps + 1
    return steps


def _make_queue(*columns: str | sa.TextClause) -> None:
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index(
        "ix_jobs_queue", "jobs", list(columns), sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED
    )
