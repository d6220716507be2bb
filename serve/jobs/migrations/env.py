"""Alembic runs this on the connection and in the transaction of `serve.jobs.database`."""

from alembic import context

from serve.jobs.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
