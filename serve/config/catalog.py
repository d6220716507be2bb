"""The section `catalog` of the configuration, and the file of one model in the catalog's folder."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from deployments.ingestion.model_entry import ModelToIngest
from serve.config.limits import MAX_PROMPT_LENGTH, DefaultsConfig
from serve.config.model import watched_folder
from serve.config.schema import ConfigError, Section, expanded
from serve.config.sentences import sentences

MODEL_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # also the name of a file, and a part of URLs


class CatalogConfig(Section):
    """Models that are served besides `model`. They are computed as `model` says."""

    folder: str | None = Field(
        None,
        description="Folder with a YAML file for each further model, read again when it changes; `null`: "
        "only `model` is served",
    )
    cache_folder: str | None = Field(
        None,
        description="Folder of the models as they were read in, shared by all nodes; `null`: `models` in "
        "`jobs.data_folder`",
    )
    cache_gib: PositiveFloat = Field(
        200.0, description="Size of that folder in GiB, past which models that were not used for long go"
    )

    def resolved(self, data_folder: str) -> Self:
        """The section with absolute paths. Raises ConfigError if one names no home folder.

        data_folder: `jobs.data_folder`
        """
        if self.cache_folder is None:
            cache = expanded("jobs.data_folder", data_folder) / "models"
        else:
            cache = expanded("catalog.cache_folder", self.cache_folder)
        folder = None if self.folder is None else str(watched_folder("catalog.folder", self.folder))
        return self.model_copy(update={"folder": folder, "cache_folder": str(cache.absolute())})


class EntryDefaults(Section):
    """Defaults for requests that name this model. What is not given is as in the section `defaults`."""

    sampler: str | None = Field(None, description="Name of the sampler")
    num_inference_steps: PositiveInt | None = Field(None, description="Denoising steps")
    guidance_scale: NonNegativeFloat | None = Field(
        None, description="Classifier-free guidance; up to 1 is none"
    )
    width: PositiveInt | None = Field(None, description="Width in pixels; `null`: the model's own")
    height: PositiveInt | None = Field(None, description="Height in pixels; `null`: the model's own")
    negative_prompt: str | None = Field(
        None, max_length=MAX_PROMPT_LENGTH, description="Negative prompt; `null`: none"
    )
    clip_skip: NonNegativeInt | None = Field(
        None,
        description="Last layers of the text encoder that are left out, as diffusers counts; `null`: none",
    )
    prompt_syntax: Literal["plain", "a1111"] | None = Field(
        None, description="Whether brackets in prompts are text, or weights as in A1111"
    )
    long_prompts: Literal["truncate", "chunk"] | None = Field(
        None, description="Whether what the text encoder cannot read at once is cut off"
    )


class FusedAdapter(Section):
    """An adapter that is merged into a model's weights."""

    adapter: str = Field(
        min_length=1,
        description="File (`.safetensors`), or one of the hub: `owner/name/file.safetensors`; a relative "
        "path is in the folder of this file, or else in the project",
    )
    scale: FiniteFloat = Field(1.0, description="What the adapter's effect is multiplied by")


class CatalogEntry(Section):
    """A model of the catalog, with its keys as in its file. Paths are absolute once the file is read."""

    id: str = Field(pattern=MODEL_ID, description="Name that clients use; by default the file's name")
    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Other names that clients may use"
    )
    source: str = Field(
        min_length=1,
        description="Folder in diffusers format, single file, or hub id; a relative path is in the folder of "
        "this file, or else in the project",
    )
    revision: str | None = Field(None, description="Hub revision")
    variant: str | None = Field(None, description="Weight variant, for example `fp16`")
    vae: str | None = Field(None, description="Another VAE: a source like `source`")
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto", description="What the U-Net predicts; `auto`: as its files say"
    )
    zero_terminal_snr: bool | Literal["auto"] = Field(
        "auto",
        description="Whether its noise schedule ends without any signal; `auto`: as its files say",
    )
    allow_pickle: bool = Field(
        False,
        description="Whether weights may be pickles; a pickle can run any code when it is loaded",
    )
    config: str | None = Field(
        None,
        description="Folder in diffusers format, weights not needed, whose configurations a single file "
        "takes; `null`: they are told from the file",
    )
    embeddings_folder: str | None = Field(
        None, description="Folder of textual inversions (`.safetensors`) that prompts can name"
    )
    fuse: tuple[FusedAdapter, ...] = Field(
        (), description="Adapters to merge into its weights, one after another, when the model is read in"
    )
    defaults: EntryDefaults = Field(default_factory=EntryDefaults)

    def to_ingest(self) -> ModelToIngest:
        """What is to be read into the cache."""
        return ModelToIngest(
            source=self.source,
            revision=self.revision,
            variant=self.variant,
            vae=self.vae,
            prediction_type=self.prediction_type,
            zero_terminal_snr=self.zero_terminal_snr,
            allow_pickle=self.allow_pickle,
            config=self.config,
            fuse=tuple((fused.adapter, fused.scale) for fused in self.fuse),
        )


def effective_defaults(defaults: DefaultsConfig, of_entry: EntryDefaults) -> DefaultsConfig:
    """The defaults of a model: its own, and the application's for what its file does not give. Sizes are its
    own or the model's, because the application's suit another model.

    A `null` in the file counts as given. Raises ConfigError if they do not go together.
    """
    given = of_entry.model_dump(exclude_unset=True)
    merged = defaults.model_dump() | {"width": None, "height": None} | given
    try:
        return DefaultsConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(f"defaults.{line}" for line in sentences(error, merged))) from error
