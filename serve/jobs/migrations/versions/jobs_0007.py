"""Pictures that jobs start from, while it is open whether their jobs will come."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.Text(), primary_key=True),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_job_inputs_created_at", "job_inputs", ["created_at"])


def downgrade() -> None:
    op.drop_table("job_inputs")
