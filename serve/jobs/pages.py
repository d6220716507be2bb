"""Pages of an owner's items, newest first. New items do not move a cursor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Row, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.errors import InvalidRequestError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """next: the cursor of the page of older items, if there are any; previous: the cursor of newer items"""

    items: tuple[Item, ...]
    next: str | None
    previous: str | None


async def read_page(
    connection: AsyncConnection,
    table: Table,
    where: ColumnElement[bool],
    read: Callable[[Row[Any]], Item],
    limit: int,
    cursor: str | None,
) -> Page[Item]:
    """A page of the selected rows of a table, in the order of its column `seq`.

    cursor: of another page of the same rows, None for the newest
    Raises InvalidRequestError if it is not a cursor.
    """
    if cursor is None:
        goes_back, bound = True, None
    else:
        goes_back, bound = _parse_cursor(cursor)
    seq = table.c.seq
    statement = select(table).where(where)
    statement = statement.order_by(seq.desc() if goes_back else seq).limit(limit + 1)
    if bound is not None:
        statement = statement.where(seq < bound if goes_back else seq > bound)
    rows = (await connection.execute(statement)).all()
    is_more = len(rows) > limit
    rows = rows[:limit] if goes_back else rows[:limit][::-1]
    newest, oldest = (rows[0].seq, rows[-1].seq) if rows else (bound, bound)
    has_older = is_more if goes_back else True  # the page that the cursor came from
    has_newer = bound is not None if goes_back else is_more
    return Page(
        tuple(map(read, rows)),
        next=f"before-{oldest}" if has_older else None,
        previous=f"after-{newest}" if has_newer else None,
    )


def _parse_cursor(cursor: str) -> tuple[bool, int]:
    """Whether the page goes to older items, and the seq where it starts."""
    direction, _, seq = cursor.partition("-")
    if direction not in ("before", "after") or not (seq.isascii() and seq.isdigit() and len(seq) < 19):
        raise InvalidRequestError("cursor is not one that a page of this list gave.", param="cursor")
    return direction == "before", int(seq)
