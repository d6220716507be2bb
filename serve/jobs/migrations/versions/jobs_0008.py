"""The latest previews of jobs under way; jobs that their clients have deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("previews", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("jobs", sa.Column("is_deleted", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(
        "ix_jobs_deleted",
        "jobs",
        ["seq"],
        # As the query has it, or SQLite would not use the index.
        sqlite_where=sa.text("is_deleted IS 1 AND data_removed IS 0"),
        postgresql_where=sa.text("is_deleted IS true AND data_removed IS false"),
    )


def downgrade() -> None:
    # The version before knows of no deleted jobs. It would show them, but at its next round they expire.
    op.execute("UPDATE jobs SET completed_at = 0 WHERE is_deleted")
    op.drop_index("ix_jobs_deleted", "jobs")
    op.drop_column("jobs", "is_deleted")
    op.drop_column("jobs", "previews")
