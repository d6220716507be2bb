"""All stages of a model in one process, for a script: prompts in, pixels out, without Ray."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType

import torch
from PIL import Image, ImageOps

from deployments.engine.adapters import (
    AdapterRef,
    AdapterUse,
    Weights,
    bank_rows,
    padded_rank,
    targets_of,
)
from deployments.engine.bank import EMPTY_LAYOUT, Block, Layout
from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import step_runner
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.fit_picture import fit_picture, on_white
from deployments.engine.images import LatentDecoder, Pixels
from deployments.engine.messages import (
    DenoisedLatents,
    DenoiseFailed,
    DenoiseRequest,
    EncodedPicture,
    ImageParameters,
    PromptEmbeds,
)
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.model_source import ModelSource, Placement, load_model_info
from deployments.engine.models import load_text_pipeline, load_unet_module, load_vae, place_unet, unet_bank
from deployments.engine.pictures import PictureEncoder, prepare_picture
from deployments.engine.prompt_text import PromptText
from deployments.engine.prompts import TextEncoder
from deployments.engine.samplers import SamplerTables
from deployments.engine.stage_errors import StageError, sound


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A finished picture. index: the index of its prompt among all prompts ever added

    latents: what it was decoded from, [C, h, w] float32 on the CPU
    """

    index: int
    pixels: Pixels
    latents: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LocalAdapter:
    """An adapter of the engine's U-Net; see `LocalEngine.adapter`."""

    ref: AdapterRef
    block: Block


class LocalEngine:
    """One model's text encoder, engine, decoder, picture encoder and sampler tables; see `load_engine`."""

    def __init__(
        self,
        encoder: TextEncoder,
        engine: Engine,
        decoder: LatentDecoder,
        pictures: PictureEncoder,
        tables: SamplerTables,
        height: int,
        width: int,
        scale_factor: int,
        layout: Layout = EMPTY_LAYOUT,
        dtype: torch.dtype = torch.float32,
        max_rank: int = 0,
    ) -> None:
        """height, width: in pixels, for pictures without a given size

        scale_factor: image pixels per latent, in each direction
        layout, dtype, max_rank: of the bank for adapters
        """
        self.encoder = encoder
        self.engine = engine
        self.decoder = decoder
        self.pictures = pictures
        self.tables = tables
        self.height = height
        self.width = width
        self.scale_factor = scale_factor
        self._layout = layout
        self._dtype = dtype
        self._max_rank = max_rank
        self._adapters = count()
        self._num_added = 0

    @property
    def num_requests(self) -> int:
        """Number of unfinished pictures."""
        return self.engine.num_requests

    def adapter(self, name: str, weights: Weights) -> LocalAdapter:
        """An adapter of the U-Net, for `add`. weights: by layer (deployments.adapters.reading)

        Raises OverflowError if a value is not finite in the engine's precision.
        """
        rank = max(len(factors.a) for factors in weights.values())
        digest = str(next(self._adapters))  # another one may have the same name
        ref = AdapterRef(name, "", digest, unet_rank=rank, text_rank=0)
        return LocalAdapter(ref, self._layout.pack(digest, rank, weights, self._dtype))

    def add(
        self,
        *prompts: str,
        negative_prompt: str | None = None,
        seed: int = 0,
        num_inference_steps: int = 20,
        guidance_scale: float = 5.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
        sampler: str = "DPM++ 2M",
        height: int | None = None,
        width: int | None = None,
        image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        strength: float = 0.8,
        adapters: Mapping[LocalAdapter, float] = MappingProxyType({}),
    ) -> None:
        """Adds one picture per prompt, with seeds counting up from `seed`; they join the next forward.

        height, width: in pixels, multiples of the model's scale factor
        guidance_start, guidance_end, guidance_rescale: as in `ImageParameters`
        image: the picture to start from, brought to the size; mask_image: white where it is repainted
        strength: the share of the steps that is done from a picture, above 0 and up to 1
        adapters: with their scales
        Raises UnsupportedSamplerError, ValueError if the adapters' ranks are above `max_rank` together, and
        StageError if the text encoder or the VAE overflows.
        """
        height, width = height or self.height, width or self.width
        started_at = None if image is None else strength
        table = self.tables.table(sampler, num_inference_steps, strength=started_at)
        picture = None if image is None else self._encoded(image, mask_image, height, width)
        parameters = ImageParameters(
            height=height,
            width=width,
            latent_shape=(height // self.scale_factor, width // self.scale_factor),
            strength=started_at,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            num_calls=table.num_calls,
            guidance_scale=guidance_scale,
            guidance_start=guidance_start,
            guidance_end=guidance_end,
            guidance_rescale=guidance_rescale,
            seed=seed,
            adapters=self._uses(adapters),
        )
        blocks = [one.block for one in adapters]
        for offset, embeds in enumerate(self._embeds(prompts, negative_prompt, guidance_scale > 1)):
            fields = parameters.parameters() | {"seed": seed + offset}
            request = DenoiseRequest(str(self._num_added), embeds, picture=picture, **fields)
            self.engine.add(request, blocks=blocks)
            self._num_added += 1

    def _uses(self, adapters: Mapping[LocalAdapter, float]) -> tuple[AdapterUse, ...]:
        uses = tuple(AdapterUse(one.ref, scale) for one, scale in adapters.items())
        if bank_rows(uses) > self._max_rank:
            raise ValueError(f"the adapters need max_rank={bank_rows(uses)}; it is {self._max_rank}")
        return uses

    def _embeds(
        self, prompts: Sequence[str], negative_prompt: str | None, guided: bool
    ) -> list[PromptEmbeds]:
        """All prompts, encoded in one call."""
        texts = [PromptText(prompt, negative_prompt, guided, deterministic=False) for prompt in prompts]
        needed = [text for prompt in texts for text in self.encoder.texts(prompt)]
        encoded = iter(sound(self.encoder.encode(needed)))
        return [
            self.encoder.assemble(text, [next(encoded) for _ in self.encoder.texts(text)]) for text in texts
        ]

    def _encoded(
        self, image: Image.Image, mask_image: Image.Image | None, height: int, width: int
    ) -> EncodedPicture:
        upright = on_white(ImageOps.exif_transpose(image))
        fitted = fit_picture(upright, mask_image, height, width)
        prepared = prepare_picture(fitted, height, width)
        [picture] = sound(self.pictures.encode([prepared]))
        return picture

    def step(self) -> list[Picture]:
        """Steps the engine and decodes the pictures that it finished; there must be a request.

        Raises StageError if a picture failed.
        """
        with _one_thread():
            events = self.engine.step().events
        for event in events:
            if isinstance(event, DenoiseFailed):
                raise StageError(event.fault, f"picture {event.request_id}: {event.reason}")
        done = [event for event in events if isinstance(event, DenoisedLatents)]
        if not done:
            return []
        pixels = sound(self.decoder.decode([event.latents for event in done]))
        return [
            Picture(int(event.request_id), image, event.latents)
            for event, image in zip(done, pixels, strict=True)
        ]

    def finish(self) -> list[Pixels]:
        """Steps until all pictures are done. Returns them in the order in which they were added."""
        pictures: list[Picture] = []
        while self.num_requests:
            pictures += self.step()
        return [picture.pixels for picture in sorted(pictures, key=lambda picture: picture.index)]


def load_engine(
    path: str,
    device: str = "auto",
    dtype: str = "float32",
    max_images: int = 8,
    max_rank: int = 0,
    quantization: str = "none",
) -> LocalEngine:
    """Loads a model in diffusers format, ready to make pictures. path: a folder or a hub id

    device: auto, cpu or cuda; dtype: float32, bfloat16 or float16; quantization: none, int8 or fp8
    max_images: number of guided pictures of the model's usual size that share a forward
    max_rank: the most ranks of the adapters in a forward, each rounded up to a multiple of 16
    Raises ModelLoadError.
    """
    placement = Placement(device, dtype, quantization=quantization)
    return engine_of(ModelSource(path), placement, max_images, max_rank)


def engine_of(source: ModelSource, placement: Placement, max_images: int, max_rank: int = 0) -> LocalEngine:
    """The engine of a model on its placement. max_images, max_rank: as in `load_engine`

    Raises ModelLoadError.
    """
    max_rank = padded_rank(max_rank)
    info = load_model_info(source)
    shape = (info.default_height // info.scale_factor, info.default_width // info.scale_factor)
    rows = 2 * max_images
    module = load_unet_module(source, placement.torch_dtype())
    unet = place_unet(module, placement, unet_bank(module, placement, max_rank))
    config = EngineConfig(rows, rows, rows, shape, None, max_rank=max_rank).for_device(unet.device)
    # Not measured. As more rows cost nothing here, all share a forward.
    cost = StageCost(((shape, Curve(0.01, 1, 0.0)),))
    tables = SamplerTables(info.scheduler_config)
    vae = load_vae(source, placement)
    run_step = step_runner(unet, config.static_shapes)
    return LocalEngine(
        encoder=TextEncoder(load_text_pipeline(source, placement)),
        engine=Engine(OneModel(KnownModel(unet.shape, tables, cost), run_step), config),
        decoder=LatentDecoder(vae),
        pictures=PictureEncoder(vae, with_masked=info.needs_mask),
        tables=tables,
        height=info.default_height,
        width=info.default_width,
        scale_factor=info.scale_factor,
        layout=Layout.of(targets_of(module)) if max_rank else EMPTY_LAYOUT,
        dtype=placement.torch_dtype(),
        max_rank=max_rank,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sets one torch thread for a while, since forwards on a CPU have their own threads (row_parts)."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
