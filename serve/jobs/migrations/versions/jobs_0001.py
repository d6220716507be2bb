"""Jobs, their transitions, and the messages for webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "jobs",
        sa.Column("seq", sequence, primary_key=True),
        sa.Column("id", sa.Text(), nullable=False, unique=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.Column("webhook_url", sa.Text()),
        sa.Column("webhook_events", sa.Text()),
        sa.Column("deadline", sa.Double()),
        sa.Column("idempotency_key", sa.Text(), unique=True),
        sa.Column("fingerprint", sa.Text()),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("num_steps", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("given_back", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("completed_at", sa.Double()),
        sa.Column("steps_done", sa.Integer(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("notified_at", sa.Double()),
        sa.Column("data_removed", sa.Boolean(), nullable=False),
    )
    unfinished = sa.text("completed_at IS NULL")
    has_key = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        [sa.text("priority DESC"), "seq"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
    for column in ("deadline", "lease_until"):
        op.create_index(
            f"ix_jobs_{column}", "jobs", [column], sqlite_where=unfinished, postgresql_where=unfinished
        )
    finished = sa.text("completed_at IS NOT NULL")
    op.create_index("ix_jobs_finished", "jobs", ["state"], sqlite_where=finished, postgresql_where=finished)
    op.create_index("ix_jobs_retention", "jobs", ["data_removed", "completed_at"])
    op.create_index("ix_jobs_key_age", "jobs", ["created_at"], sqlite_where=has_key, postgresql_where=has_key)

    op.create_table(
        "transitions",
        sa.Column("seq", sequence, primary_key=True),
        sa.Column("job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text()),
    )
    op.create_index("ix_transitions_job_id", "transitions", ["job_id"])

    op.create_table(
        "deliveries",
        sa.Column("seq", sequence, primary_key=True),
        sa.Column("id", sa.Text(), nullable=False, unique=True),
        sa.Column("job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due", sa.Double()),
        sa.Column("reason", sa.Text()),
    )
    op.create_index("ix_deliveries_job_id", "deliveries", ["job_id"])
    op.create_index("ix_deliveries_due", "deliveries", ["due"])


def downgrade() -> None:
    for table in ("deliveries", "transitions", "jobs"):
        op.drop_table(table)
