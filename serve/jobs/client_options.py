"""Options that clients keep on the server, such as the model of A1111's API.

They are in the job database, because all ingress replicas must know them, and also after a restart.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from serve.jobs.database import Database, uninterrupted
from serve.jobs.tables import client_options

_c = client_options.c


class ClientOptions:
    """The options of each client, by its name. Each is a row, so clients may change different ones at once.

    All methods may raise JobStoreUnavailableError, and `change` also StorageFullError.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @uninterrupted
    async def of(self, owner: str) -> Mapping[str, Any]:
        """The options that a client has set, by their names."""
        found = select(_c.name, _c.value).where(_c.owner == owner)
        async with self.database.read() as connection:
            return {row.name: row.value for row in await connection.execute(found)}

    @uninterrupted
    async def change(self, owner: str, values: Mapping[str, Any]) -> None:
        """Sets options, on disk when this returns. values: any JSON"""
        if not values:
            return
        rows = [{"owner": owner, "name": name, "value": value} for name, value in values.items()]
        given = self.database.insert(client_options).values(rows)
        changed = given.on_conflict_do_update(
            index_elements=[_c.owner, _c.name], set_={"value": given.excluded.value}
        )
        async with self.database.write() as connection:
            await connection.execute(changed)
