"""Files that clients upload: bytes in the object store, rows in the job database.

Every object has a row at every moment: the row is written before the object and deleted after it.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, insert, not_, select, update

from serve.errors import ObjectStoreUnavailableError
from serve.jobs.database import Database, uninterrupted
from serve.jobs.ids import new_id
from serve.jobs.objects import ObjectStore
from serve.jobs.pages import Page, read_page
from serve.jobs.tables import files, now_s

LIFETIME_S = 24 * 3600.0  # the same as Replicate's
# An upload that is unfinished by then, because its process died, is given up.
STORING_S = 3600.0
_REMOVED_AT_ONCE = 100

_c = files.c
_expired = _c.expires_at <= now_s()
_is_there = and_(_c.is_stored, not_(_expired))


@dataclass(frozen=True, slots=True)
class NewFile:
    """A complete file. owner: as of a job; metadata: the client's own, any JSON"""

    owner: str
    name: str
    content_type: str
    metadata: Mapping[str, Any]
    data: bytes


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file without its bytes. sha256, md5: in hexadecimal; times: as of a job

    signature: its holder may have the bytes
    """

    id: str
    owner: str
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    md5: str
    metadata: Mapping[str, Any]
    signature: str
    created_at: float
    expires_at: float

    @property
    def key(self) -> str:
        """The key of its bytes in the object store."""
        return _key(self.id)


class Uploads:
    """The uploaded files that have not expired. Each belongs to one client.

    All methods may raise JobStoreUnavailableError; methods that store something also StorageFullError, and
    methods that use the object store also ObjectStoreUnavailableError.
    """

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self.database = database
        self._objects = objects

    @uninterrupted
    async def keep(self, new: NewFile) -> StoredFile:
        """Stores a file, on disk when this returns. `remove_expired` removes what an incomplete one left."""
        file_id = new_id()
        sha256, md5 = await asyncio.to_thread(_checksums, new.data)
        row = {
            "id": file_id,
            "owner": new.owner,
            "name": new.name,
            "content_type": new.content_type,
            "size_bytes": len(new.data),
            "sha256": sha256,
            "md5": md5,
            "metadata": dict(new.metadata),
            "signature": secrets.token_urlsafe(32),
            "is_stored": False,
        }
        async with self.database.write() as connection:
            await connection.execute(
                insert(files).values(created_at=now_s(), expires_at=now_s() + STORING_S, **row)
            )
        await self._objects.put(_key(file_id), new.data, new.content_type)
        stored = (
            update(files)
            .where(_c.id == file_id, not_(_expired))
            .values(is_stored=True, expires_at=_c.created_at + LIFETIME_S)
            .returning(files)
        )
        async with self.database.write() as connection:
            kept = (await connection.execute(stored)).one_or_none()
        if kept is None:  # it was given up meanwhile
            await self._objects.delete_folder(_folder(file_id))
            raise ObjectStoreUnavailableError("The object store took too long to keep the file.")
        return _read(kept)

    @uninterrupted
    async def get(self, file_id: str, owner: str) -> StoredFile | None:
        """The file; None if the owner has no such file."""
        return await self._find(and_(_c.id == file_id, _c.owner == owner))

    @uninterrupted
    async def signed(self, file_id: str, signature: str) -> StoredFile | None:
        """The file for the holder of its signature, else None."""
        found = await self._find(_c.id == file_id)
        if found and secrets.compare_digest(found.signature.encode(), signature.encode()):
            return found
        return None

    @uninterrupted
    async def page(self, limit: int, cursor: str | None, owner: str) -> Page[StoredFile]:
        """A page of files, newest first. Raises InvalidRequestError if it is not a cursor."""
        where = and_(_c.owner == owner, _is_there)
        async with self.database.read() as connection:
            return await read_page(connection, files, where, _read, limit, cursor)

    @uninterrupted
    async def delete(self, file_id: str, owner: str) -> bool:
        """Whether there was such a file. It disappears at once for everybody, and its bytes soon."""
        is_it = and_(_c.id == file_id, _c.owner == owner, _is_there)
        statement = update(files).where(is_it).values(expires_at=now_s()).returning(_c.id)
        async with self.database.write() as connection:
            return bool((await connection.execute(statement)).all())

    async def remove_expired(self) -> None:
        """Removes expired files: first the bytes, then the rows that name them."""
        while file_ids := await self._expired():
            for file_id in file_ids:
                await self._objects.delete_folder(_folder(file_id))
            await self._forget(file_ids)

    @uninterrupted
    async def _expired(self) -> list[str]:
        statement = select(_c.id).where(_expired).order_by(_c.expires_at).limit(_REMOVED_AT_ONCE)
        async with self.database.read() as connection:
            return list((await connection.execute(statement)).scalars())

    @uninterrupted
    async def _forget(self, file_ids: list[str]) -> None:
        async with self.database.write() as connection:
            await connection.execute(delete(files).where(_c.id.in_(file_ids), _expired))

    async def _find(self, where: ColumnElement[bool]) -> StoredFile | None:
        async with self.database.read() as connection:
            row = (await connection.execute(select(files).where(where, _is_there))).one_or_none()
        return None if row is None else _read(row)


def _key(file_id: str) -> str:
    return f"{_folder(file_id)}/content"


def _folder(file_id: str) -> str:
    """A file's own folder, which is deleted with it. A process that died may have left a part of it there."""
    return f"uploads/{file_id}"


def _checksums(data: bytes) -> tuple[str, str]:
    """SHA-256 and MD5; MD5 only because clients know it."""
    return hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest()


def _read(row: Row[Any]) -> StoredFile:
    return StoredFile(
        id=row.id,
        owner=row.owner,
        name=row.name,
        content_type=row.content_type,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        md5=row.md5,
        metadata=row.metadata,
        signature=row.signature,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
