"""How the job store's tables came to be, by Alembic. Each module of `versions` names the one before it."""
