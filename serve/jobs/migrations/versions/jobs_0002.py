"""Counts failures in a row, and a runner's death only if it had begun the job."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # SQLite before 3.35 drops no columns, but renames them.
    op.alter_column("jobs", "given_back", new_column_name="failures")
    op.execute("UPDATE jobs SET failures = 0")
    op.add_column("jobs", sa.Column("is_begun", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("jobs", "is_begun")
    op.alter_column("jobs", "failures", new_column_name="given_back")
    op.execute("UPDATE jobs SET given_back = attempt")
