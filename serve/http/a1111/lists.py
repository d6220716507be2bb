"""A1111's lists of models, samplers and more, and its calls that have nothing to do here."""

import os
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.tensor_files.errors import TensorFileError
from deployments.tensor_files.headers import read_header
from serve.adapter_survey import architectures, survey
from serve.http.a1111 import operations
from serve.http.a1111.answers import EmbeddingItem, Embeddings, LoraItem, Memory, ModelItem, UpscalerItem
from serve.http.a1111.hires import UPSCALERS
from serve.http.a1111.options import OptionsRoutes
from serve.http.a1111.samplers import listed_samplers, listed_schedulers
from serve.http.authentication import client_of
from serve.http.front_desk import FrontDesk
from serve.http.operations import described

_PREFIX = "/sdapi/v1"
# There are none of these here.
_EMPTY = ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles")
# Models and adapters come, go and are loaded by themselves.
_NOTHING_TO_DO = (
    "refresh-checkpoints",
    "refresh-loras",
    "refresh-embeddings",
    "refresh-vae",
    "unload-checkpoint",
    "reload-checkpoint",
)
# What of A1111's command line is true here. Clients look for `api`.
_FLAGS: Mapping[str, object] = {"api": True, "nowebui": True, "api_auth": None, "no_half": False}


class ListsRoutes:
    """The handlers of the routes. options: know the model that a client has chosen"""

    def __init__(self, desk: FrontDesk, options: OptionsRoutes) -> None:
        self._models = desk.models
        self._options = options

    @property
    def routes(self) -> list[Route]:
        return [
            Route(f"{_PREFIX}/sd-models", self._sd_models),
            Route(f"{_PREFIX}/samplers", self._samplers),
            Route(f"{_PREFIX}/schedulers", self._schedulers),
            Route(f"{_PREFIX}/upscalers", self._upscalers),
            Route(f"{_PREFIX}/latent-upscale-modes", self._latent_upscale_modes),
            Route(f"{_PREFIX}/loras", self._loras),
            Route(f"{_PREFIX}/embeddings", self._embeddings),
            Route(f"{_PREFIX}/scripts", self._scripts),
            Route(f"{_PREFIX}/cmd-flags", self._cmd_flags),
            Route(f"{_PREFIX}/memory", self._memory),
            *(Route(f"{_PREFIX}/{name}", self._empty) for name in _EMPTY),
            *(Route(f"{_PREFIX}/{name}", self._nothing, methods=["POST"]) for name in _NOTHING_TO_DO),
        ]

    @described(operations.SD_MODELS)
    async def _sd_models(self, _: Request) -> Response:
        listed: list[ModelItem] = [
            {
                "title": one.id,
                "model_name": one.id,
                "hash": None,
                "sha256": None,
                "filename": one.id,
                "config": None,
            }
            for one in self._models.all
        ]
        return JSONResponse(listed)

    @described(operations.SAMPLERS)
    async def _samplers(self, _: Request) -> Response:
        return JSONResponse(listed_samplers())

    @described(operations.SCHEDULERS)
    async def _schedulers(self, _: Request) -> Response:
        return JSONResponse(listed_schedulers())

    @described(operations.UPSCALERS)
    async def _upscalers(self, _: Request) -> Response:
        """The upscalers of images; A1111 lists those of latents apart."""
        listed: list[UpscalerItem] = [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
            for name, what in UPSCALERS.items()
            if what != "latent"
        ]
        return JSONResponse(listed)

    @described(operations.LATENT_UPSCALE_MODES)
    async def _latent_upscale_modes(self, _: Request) -> Response:
        return JSONResponse([{"name": name} for name, what in UPSCALERS.items() if what == "latent"])

    @described(operations.LORAS)
    async def _loras(self, _: Request) -> Response:
        adapters = self._models.configured.adapters
        return JSONResponse(await adapters.on_thread(self._listed_loras))

    @described(operations.EMBEDDINGS)
    async def _embeddings(self, request: Request) -> Response:
        model = await self._options.model_of(client_of(request).name)
        folder = model.source.embeddings
        adapters = self._models.configured.adapters
        return JSONResponse(await adapters.on_thread(_listed_embeddings, folder))

    @described(operations.SCRIPTS)
    async def _scripts(self, _: Request) -> Response:
        return JSONResponse({"txt2img": [], "img2img": []})

    @described(operations.CMD_FLAGS)
    async def _cmd_flags(self, _: Request) -> Response:
        return JSONResponse(_FLAGS)

    @described(operations.MEMORY)
    async def _memory(self, _: Request) -> Response:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        memory: Memory = {
            "ram": {"free": free, "used": total - free, "total": total},
            "cuda": {"error": "devices belong to other processes; /metrics has their memory"},
        }
        return JSONResponse(memory)

    @described(operations.NONE)
    async def _empty(self, _: Request) -> Response:
        return JSONResponse([])

    @described(operations.NOTHING)
    async def _nothing(self, _: Request) -> Response:
        return JSONResponse({})

    def _listed_loras(self) -> list[LoraItem]:
        """The adapters that requests can name."""
        adapters = self._models.configured.adapters
        listing = adapters.listing
        known = architectures(((one.id, one.family, one.source) for one in self._models.all), adapters)
        listed: list[LoraItem] = []
        for adapter_id, path in listing.files.items():
            found = survey(path, adapters, known)
            if found.file is None or found.problem:
                continue
            name = path.stem if len(listing.named(path.stem)) == 1 else adapter_id
            listed.append(
                {
                    "name": name,
                    "alias": name,
                    "path": f"{adapter_id}{path.suffix}",
                    "metadata": {
                        **found.file.metadata,
                        "family": found.family,
                        "models": list(found.models),
                        "trigger_words": found.trigger_words,
                    },
                }
            )
        return listed


def _listed_embeddings(folder: str | None) -> Embeddings:
    """The textual inversions in a folder."""
    loaded: dict[str, EmbeddingItem] = {}
    for path in sorted(Path(folder).glob("*.safetensors")) if folder else ():
        try:
            shapes = [one.shape for one in read_header(path).tensors.values()]
        except (OSError, TensorFileError):
            continue  # the text encoder has left it out too, with a warning
        if not shapes or not shapes[0]:
            continue
        vectors = shapes[0][0] if len(shapes[0]) > 1 else 1
        loaded[path.stem] = {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": shapes[0][-1],
            "vectors": vectors,
        }
    return {"loaded": loaded, "skipped": {}}
