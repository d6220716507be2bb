"""Images by URL: `GET /v1/files/{folder}/{name}`, as a whole, from the object store."""

from datetime import UTC
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.errors import ObjectNotFoundError, ObjectStoreUnavailableError
from serve.http.operations import Answer, Operation, Parameter, described
from serve.jobs.objects import ANSWERS_FOLDER, IMAGE_CACHE_CONTROL, ObjectStore, StoredObject, is_image_key
from serve.parameters import MEDIA_TYPES

FILES_PATH = "/v1/files"
_GET = Operation(
    tag="Files",
    summary="Get an image",
    description="Who has the URL may have the image: it needs no key.",
    parameters=(
        Parameter(name="folder", place="path", description="Taken from the image's URL."),
        Parameter(name="name", place="path", description="Taken from there as well."),
        Parameter(name="If-None-Match", place="header", description="The `etag` of what is there already."),
    ),
    answers=(
        Answer(description="The image.", media_types=tuple(MEDIA_TYPES.values())),
        Answer(
            status=302,
            description="It is in the object store, at that URL (`jobs.presigned_urls`).",
            media_types=(),
            headers={"location": "A URL that is good for an hour."},
        ),
        Answer(status=304, description="It is what the client has already.", media_types=()),
    ),
    errors=(ObjectNotFoundError, ObjectStoreUnavailableError),
)


class FilesRoute:
    """The handler for GET and HEAD of an image. Anyone who has the key may have the image.

    presign_s: if the object store can, redirects to it by a URL that is valid this long; None: never
    """

    def __init__(self, objects: ObjectStore, presign_s: float | None = None) -> None:
        self._objects = objects
        self._presign_s = presign_s

    @property
    def routes(self) -> list[Route]:
        # Keys have at least one folder. Directly below are clients' uploads, which need an API key.
        return [Route(FILES_PATH + "/{folder}/{name:path}", self._get)]

    @described(_GET)
    async def _get(self, request: Request) -> Response:
        key = "{folder}/{name}".format(**request.path_params)
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
    return {
        "cache-control": IMAGE_CACHE_CONTROL,
        "content-disposition": f'inline; filename="{_file_name(stored.key)}"',
        "etag": stored.etag,
        "last-modified": _http_date(stored),
        "x-content-type-options": "nosniff",
    }


def _file_name(key: str) -> str:
    """A file name for saving an image: from its job and its index in the job, if it has a job."""
    folder, _, name = key.rpartition("/")
    if folder == ANSWERS_FOLDER:
        return name
    index, suffix = name.partition("-")[0], name.rpartition(".")[2]
    return f"{folder.removeprefix('images/')}-{index}.{suffix}"


def _has_it(request: Request, stored: StoredObject) -> bool:
    known = request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
    return "*" in tags or stored.etag.removeprefix("W/") in tags


def _http_date(stored: StoredObject) -> str:
    return format_datetime(stored.last_modified.astimezone(UTC), usegmt=True)
