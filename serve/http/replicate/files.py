"""`/v1/files`: files that Replicate's clients upload, as they do for inputs of models that take files."""

import asyncio
from urllib.parse import quote, urlencode

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.errors import ObjectNotFoundError
from serve.http.addresses import base_url
from serve.http.authentication import client_of
from serve.http.files import FILES_PATH
from serve.http.form import opened_form
from serve.http.operations import described
from serve.http.replicate import operations, paging
from serve.http.replicate.account import username
from serve.http.replicate.answers import File, Files
from serve.http.replicate.prediction import timestamp
from serve.http.replicate.upload_form import FIELDS, MAX_FIELDS, MAX_METADATA_BYTES, read_file
from serve.jobs.ids import is_id
from serve.jobs.objects import ObjectStore
from serve.jobs.uploads import StoredFile, Uploads

_IN_MEMORY_AT_ONCE = 4  # complete files on their way into the object store


class ReplicateFilesRoutes:
    """The handlers of the routes. A file belongs for a day to the client whose key uploaded it.

    public_url: from the configuration
    """

    def __init__(self, uploads: Uploads, objects: ObjectStore, public_url: str | None) -> None:
        self._uploads = uploads
        self._objects = objects
        self._public_url = public_url
        self._in_memory = asyncio.Semaphore(_IN_MEMORY_AT_ONCE)

    @property
    def routes(self) -> list[Route]:
        one = FILES_PATH + "/{file_id}"
        return [
            Route(FILES_PATH, self._create, methods=["POST"]),
            Route(FILES_PATH, self._page),
            Route(one, self._get),
            Route(one, self._delete, methods=["DELETE"]),
        ]

    @property
    def open_routes(self) -> list[Route]:
        """Routes without an API key, because the signature in a file's own URL is enough."""
        # Not in the OpenAPI document: nobody makes these URLs himself.
        return [Route(FILES_PATH + "/{file_id}/download", self._download, include_in_schema=False)]

    @described(operations.CREATE_FILE)
    async def _create(self, request: Request) -> Response:
        """Answers 201 once the file is on disk."""
        async with opened_form(request, len(FIELDS), MAX_FIELDS, MAX_METADATA_BYTES) as form:
            keeping = self._read_and_keep(form, client_of(request).name)
            # To its end, so that a file whose client leaves is counted for as long as it is in memory.
            file = await self._uploads.database.finish(keeping)
        return JSONResponse(self._described(file, request), 201)

    async def _read_and_keep(self, form: FormData, owner: str) -> StoredFile:
        async with self._in_memory:
            return await self._uploads.keep(await read_file(form, owner))

    @described(operations.FILES_PAGE)
    async def _page(self, request: Request) -> Response:
        """The client's own, newest first. `cursor` is what `next` or `previous` of another page has."""
        page = await self._uploads.page(*paging.asked(request))
        shown: Files = {
            **paging.links(page, f"{base_url(request, self._public_url)}{FILES_PATH}"),
            "results": [self._described(file, request) for file in page.items],
        }
        return JSONResponse(shown)

    @described(operations.GET_FILE)
    async def _get(self, request: Request) -> Response:
        file = await self._uploads.get(_file_id(request), client_of(request).name)
        if file is None:
            raise _not_found(request)
        return JSONResponse(self._described(file, request))

    @described(operations.DELETE_FILE)
    async def _delete(self, request: Request) -> Response:
        if not await self._uploads.delete(_file_id(request), client_of(request).name):
            raise _not_found(request)
        return Response(status_code=204)

    async def _download(self, request: Request) -> Response:
        """The file's bytes. A browser neither shows nor runs them, whatever they are."""
        file = await self._uploads.signed(_file_id(request), request.query_params.get("signature", ""))
        if file is None:
            raise _not_found(request)
        headers = {
            "cache-control": "private, no-store",
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
            "content-length": str(file.size_bytes),
            "content-security-policy": "sandbox",
            "content-type": file.content_type,
            "etag": f'"{file.sha256}"',
            "x-content-type-options": "nosniff",
        }
        if request.method == "HEAD":
            return Response(headers=headers)
        return StreamingResponse(await self._objects.stream(file.key), headers=headers)

    def _described(self, file: StoredFile, request: Request) -> File:
        """The file in Replicate's form. Anyone who has its URL can get the bytes."""
        query = {
            "expiry": int(file.expires_at),
            "owner": username(file.owner),
            "signature": file.signature,
        }
        url = f"{base_url(request, self._public_url)}{FILES_PATH}/{file.id}/download?{urlencode(query)}"
        return {
            "id": file.id,
            "name": file.name,
            "content_type": file.content_type,
            "size": file.size_bytes,
            "etag": file.sha256,
            "checksums": {"sha256": file.sha256, "md5": file.md5},
            "metadata": dict(file.metadata),
            "created_at": timestamp(file.created_at),
            "expires_at": timestamp(file.expires_at),
            "urls": {"get": url},
        }


def _file_id(request: Request) -> str:
    """The id in the path. Raises ObjectNotFoundError."""
    file_id: str = request.path_params["file_id"]
    if not is_id(file_id):
        raise _not_found(request)
    return file_id


def _not_found(request: Request) -> ObjectNotFoundError:
    file_id = request.path_params["file_id"][:64]
    return ObjectNotFoundError(
        f"There is no file {file_id!r}; files are deleted when their time is over.", "id"
    )
