"""Counts all deaths of a job's runners; separates webhooks for images from logs; hosts take turns."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deaths", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("output_notified_at", sa.Double()))
    # Existing messages share one turn.
    op.add_column("deliveries", sa.Column("host", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("deliveries", "host")
    op.drop_column("jobs", "output_notified_at")
    op.drop_column("jobs", "deaths")
