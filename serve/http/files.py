"""Images by URL: `GET /v1/files/{key}`, as a whole, from the object store."""

from datetime import UTC
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.errors import ObjectNotFoundError
from serve.jobs.objects import IMAGE_CACHE_CONTROL, ObjectStore, StoredObject, is_image_key

FILES_PATH = "/v1/files"


class FilesRoute:
    """The handler for GET and HEAD of `/v1/files/{key:path}`. Anyone who has the key may have the image.

    presign_s: if the object store can, redirects to it by a URL that is valid this long; None: never
    """

    def __init__(self, objects: ObjectStore, presign_s: float | None = None) -> None:
        self._objects = objects
        self._presign_s = presign_s

    @property
    def routes(self) -> list[Route]:
        return [Route(FILES_PATH + "/{key:path}", self._get)]

    async def _get(self, request: Request) -> Response:
        key = request.path_params["key"]
        if not is_image_key(key):
            raise ObjectNotFoundError(f"{request.url.path} is not the URL of an image.")
        stored = await self._objects.get(key)
        headers = _headers(stored)
        if _has_it(request, stored):
            return Response(status_code=304, headers=headers)
        headers |= {"content-type": stored.media_type, "content-length": str(stored.size_bytes)}
        if request.method == "HEAD":
            return Response(headers=headers)
        if self._presign_s is not None and (url := await self._objects.presigned_url(key, self._presign_s)):
            return RedirectResponse(url, 302, {"cache-control": "no-store"})
        return StreamingResponse(await self._objects.stream(key), headers=headers)


def _headers(stored: StoredObject) -> dict[str, str]:
    job_id, _, name = stored.key.removeprefix("images/").partition("/")
    index, suffix = name.partition("-")[0], name.rpartition(".")[2]
    return {
        "cache-control": IMAGE_CACHE_CONTROL,
        "content-disposition": f'inline; filename="{job_id}-{index}.{suffix}"',
        "etag": stored.etag,
        "last-modified": _http_date(stored),
        "x-content-type-options": "nosniff",
    }


def _has_it(request: Request, stored: StoredObject) -> bool:
    known = request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
    return "*" in tags or stored.etag.removeprefix("W/") in tags


def _http_date(stored: StoredObject) -> str:
    return format_datetime(stored.last_modified.astimezone(UTC), usegmt=True)
