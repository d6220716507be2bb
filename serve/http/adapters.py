"""`GET /v1/adapters` and `/v1/adapters/{id}`: the adapters that requests can name."""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from serve.adapter_survey import Architecture, architectures, survey
from serve.adapters import Adapters
from serve.errors import AdapterNotFoundError
from serve.http.addresses import base_url
from serve.http.operations import Answer, Operation, Parameter, described
from serve.served_models import ServedModels

ADAPTERS_PATH = "/v1/adapters"
_PAGE_SIZE = 100
_TAG = "Adapters"


class Adapter(TypedDict):
    """An adapter in the server's folder."""

    id: Annotated[str, Field(examples=["styles/stripes"])]
    object: Literal["adapter"]
    family: Annotated[
        str | None, Field(description="`sd1`, `sd2` or `sdxl`; null if it fits no served model.")
    ]
    models: Annotated[list[str], Field(description="The served models that it fits.")]
    kinds: Annotated[list[str], Field(description="What it is made of.", examples=[["lora", "locon"]])]
    rank: Annotated[int | None, Field(description="Its highest rank in the U-Net; 0 for none there.")]
    text_encoder_rank: Annotated[int | None, Field(description="Likewise in the text encoders.")]
    size_bytes: int
    title: Annotated[str | None, Field(description="As its author wrote it into the file.")]
    trigger_words: Annotated[list[str], Field(description="Words for the prompt, likewise.")]
    problem: Annotated[str | None, Field(description="Why requests cannot name it; null if they can.")]


class AdapterPage(TypedDict):
    """Adapters in the order of their ids, and the URLs of the pages before and after."""

    object: Literal["list"]
    data: list[Adapter]
    next: str | None
    previous: str | None


_PAGE = Operation(
    tag=_TAG,
    summary="List the adapters",
    description="The files in the server's folder of adapters, a hundred at a time.",
    parameters=(
        Parameter(
            name="cursor", place="query", description="Comes with the URLs `next` and `previous` of a page."
        ),
    ),
    answers=(Answer(description="A page.", type=AdapterPage),),
)
_GET = Operation(
    tag=_TAG,
    summary="Get an adapter",
    parameters=(
        Parameter(name="id", place="path", description="Its id, which may have slashes.", example="stripes"),
    ),
    answers=(Answer(description="The adapter.", type=Adapter),),
    errors=(AdapterNotFoundError,),
)


class AdaptersRoutes:
    """The handlers of the routes. public_url: from the configuration"""

    def __init__(self, adapters: Adapters, models: ServedModels, public_url: str | None) -> None:
        self._adapters = adapters
        self._models = models
        self._public_url = public_url

    @property
    def routes(self) -> list[Route]:
        return [Route(ADAPTERS_PATH, self._page), Route(ADAPTERS_PATH + "/{id:path}", self._get)]

    @described(_PAGE)
    async def _page(self, request: Request) -> Response:
        cursor = request.query_params.get("cursor", "")
        return JSONResponse(
            await self._adapters.on_thread(self._listed, cursor, base_url(request, self._public_url))
        )

    @described(_GET)
    async def _get(self, request: Request) -> Response:
        return JSONResponse(await self._adapters.on_thread(self._found, request.path_params["id"]))

    def _listed(self, cursor: str, base: str) -> AdapterPage:
        """The page that begins with the id in the cursor, or after where it would be."""
        files = self._adapters.listing.files
        ids = list(files)
        start = bisect_left(ids, cursor)
        known = self._architectures() if ids else []

        def url(at: int) -> str:
            return f"{base}{ADAPTERS_PATH}?cursor={quote(ids[at], safe='')}"

        end = start + _PAGE_SIZE
        return {
            "object": "list",
            "data": [self._described(one, files[one], known) for one in ids[start:end]],
            "next": url(end) if end < len(ids) else None,
            "previous": url(max(0, start - _PAGE_SIZE)) if start > 0 else None,
        }

    def _found(self, name: str) -> Adapter:
        if not self._adapters.config.are_offered:
            raise AdapterNotFoundError("id: adapters are not offered here.", "id")
        return self._described(*self._adapters.find(name, "id"), self._architectures())

    def _architectures(self) -> list[Architecture]:
        return architectures(((one.id, one.family, one.source) for one in self._models.all), self._adapters)

    def _described(self, adapter_id: str, path: Path, known: Sequence[Architecture]) -> Adapter:
        found = survey(path, self._adapters, known)
        try:
            size_bytes = path.stat().st_size
        except OSError:  # it has just gone
            size_bytes = 0
        file = found.file
        return {
            "id": adapter_id,
            "object": "adapter",
            "family": found.family,
            "models": list(found.models),
            "kinds": list(file.kinds) if file else [],
            "rank": file.unet_rank if file else None,
            "text_encoder_rank": file.text_rank if file else None,
            "size_bytes": size_bytes,
            "title": found.title,
            "trigger_words": found.trigger_words,
            "problem": found.problem,
        }
