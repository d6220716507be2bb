"""A job belongs to the client that made it, and so does its idempotency key."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("owner", sa.Text(), nullable=False, server_default=""))
    # An empty name and a line break. No key has a line break, so no two keys become equal.
    op.execute("UPDATE jobs SET idempotency_key = '\n' || idempotency_key WHERE idempotency_key IS NOT NULL")
    op.create_index("ix_jobs_owner", "jobs", ["owner", "seq"])


def downgrade() -> None:
    op.drop_index("ix_jobs_owner", "jobs")
    op.execute("UPDATE jobs SET idempotency_key = NULL, fingerprint = NULL WHERE owner <> ''")
    op.execute(
        "UPDATE jobs SET idempotency_key = substr(idempotency_key, 2) WHERE idempotency_key IS NOT NULL"
    )
    op.drop_column("jobs", "owner")
