"""The history of the job store's tables, as Alembic migrations. Each module names the one before it."""
