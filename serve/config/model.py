"""The section `model` of the configuration, and the files of costs that it names."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from deployments.engine.cost import CostModel
from deployments.engine.model_source import ModelSource
from serve.config.schema import MAIN, ConfigError, Section, expanded

PROJECT_FOLDER = Path(__file__).parents[2]
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")

Size = Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")]  # WIDTHxHEIGHT in pixels


class CostModelFile(Section):
    """The output of `midstep profile`.

    path, dtype, attention, compile, quantization: the section `model` that it was measured with; dtype is
        never `auto`
    device: the name of the GPU or CPU
    """

    path: str
    dtype: str
    attention: str = "sdpa"  # older files do not have it and the next two
    compile: bool = False
    quantization: str = "none"
    device: str
    cost_model: CostModel


class ModelConfig(Section):
    """The served model."""

    id: str = Field("shapes", min_length=1, description="Name that clients use", json_schema_extra=MAIN)
    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Other names that clients may use, such as those that their software insists on"
    )
    path: str = Field(
        "models/shapes", description="Folder in diffusers format, or hub id", json_schema_extra=MAIN
    )
    revision: str | None = Field(None, description="Hub revision")
    variant: str | None = Field(
        None, description="Weight variant, for example `fp16`", json_schema_extra=MAIN
    )
    allow_pickle: bool = Field(
        False,
        description="Whether weights may be pickles (`.bin`) where there is no safetensors file; a pickle "
        "can run any code when it is loaded",
    )
    embeddings_folder: str | None = Field(
        None,
        description="Folder of textual inversions (`.safetensors`), read at start; a prompt names one by "
        "`<name>`, or by its name alone in A1111's syntax",
    )
    device: Literal["auto", "cpu", "cuda", "simulated"] = Field(
        "auto",
        description="Device; `auto`: CUDA where Ray has NVIDIA GPUs; `simulated`: grey pictures in the "
        "time that `model.cost_model` says",
        json_schema_extra=MAIN,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision; `auto`: `bfloat16` on CUDA (`float16` where the GPU has none), `float32` "
        "elsewhere",
        json_schema_extra=MAIN,
    )
    attention: Literal["sdpa", "xformers"] = Field("sdpa", description="Attention implementation")
    quantization: Literal["none", "fp8", "int8"] = Field(
        "none",
        description="Format of the weights in the U-Net's transformers, by torchao; a model is refused if "
        "that changes its pictures much",
    )
    compile: bool = Field(
        False,
        description="Whether `torch.compile` compiles the U-Net, which starts slower and runs faster; what "
        "is compiled is kept in the data folder",
    )
    sizes: tuple[Size, ...] = Field(
        (), description="Sizes like `512x768` that are warmed up and measured at start beside the default"
    )
    cost_model: str | None = Field(
        None,
        description="File of `midstep profile`, with which nothing is measured at start",
        json_schema_extra=MAIN,
    )

    @model_validator(mode="after")
    def _check_device(self) -> "ModelConfig":
        if self.device == "simulated" and self.cost_model is None:
            raise ValueError("device: simulated needs cost_model, a file of `midstep profile`")
        if self.quantization == "fp8" and (self.device == "cpu" or self.dtype in ("float32", "float16")):
            raise ValueError(
                "quantization: fp8 needs a CUDA device and dtype: bfloat16 or auto; given are "
                f"device: {self.device} and dtype: {self.dtype}"
            )
        return self

    @property
    def shown_id(self) -> str:
        """The id for display."""
        return f"{self.id} (simulated device)" if self.device == "simulated" else self.id

    def source(self) -> ModelSource:
        """The model's source. Raises ConfigError if the path is neither a diffusers folder nor a hub id."""
        return ModelSource(
            _model_path(self.path), self.revision, self.variant, self.allow_pickle, self._embeddings()
        )

    def _embeddings(self) -> str | None:
        if self.embeddings_folder is None:
            return None
        folder = _project_path("model.embeddings_folder", self.embeddings_folder)
        if not folder.is_dir():
            raise ConfigError(f"model.embeddings_folder: {str(folder)!r} is no folder")
        return str(folder)

    def known_cost(self) -> CostModel | None:
        """The cost model from the file, if there is one. Raises ConfigError if it cannot be read."""
        file = self.cost_file()
        return file.cost_model if file else None

    def cost_file(self) -> CostModelFile | None:
        """The parsed cost model file.

        Raises ConfigError if it cannot be read, or was measured with another model or other settings. A
        simulated device takes every file.
        """
        if self.cost_model is None:
            return None
        try:
            path = _project_path("model.cost_model", self.cost_model)
            file = CostModelFile.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"model.cost_model: {self.cost_model!r} is no file of `midstep profile`: {error}"
            ) from error
        if self.device != "simulated" and (differences := self._differences(file)):
            raise ConfigError(
                f"model.cost_model: {self.cost_model!r} was measured with {', '.join(differences)}; "
                "without the key, `midstep profile` makes a file that fits"
            )
        return file

    def _differences(self, file: CostModelFile) -> list[str]:
        return [
            f"model.{name} {getattr(file, name)!r} instead of {getattr(self, name)!r}"
            for name in ("path", "dtype", "attention", "compile", "quantization")
            if getattr(file, name) != getattr(self, name)
            and not (name == "dtype" and self._may_compute_in(file.dtype))
        ]

    def _may_compute_in(self, dtype: str) -> bool:
        """Whether replicas might compute in this precision."""
        if self.dtype == "auto":
            return self.device != "cpu" or dtype == "float32"
        return self.dtype == dtype


def _project_path(key: str, path: str) -> Path:
    """Looks for a relative path in the working folder and then in the project. Raises ConfigError."""
    given = expanded(key, path)
    return given.absolute() if given.exists() else PROJECT_FOLDER / given


def watched_folder(key: str, folder: str) -> Path:
    """An absolute path. A relative one is in the working folder, unless only the project has it.

    Raises ConfigError.
    """
    given = expanded(key, folder)
    in_project = PROJECT_FOLDER / given
    return in_project if in_project.is_dir() and not given.exists() else given.absolute()


def _model_path(path: str) -> str:
    """An absolute folder in diffusers format, or a hub id unchanged.

    Asks no hub. Raises ConfigError if it is neither.
    """
    folder = _project_path("model.path", path)
    if (folder / "model_index.json").is_file():
        return str(folder)
    if folder.is_file() or path.endswith(_SINGLE_FILES):
        raise ConfigError(
            f"model.path: {path!r} is a single file, and only folders in diffusers format are served yet; "
            "`StableDiffusionPipeline.from_single_file(...).save_pretrained(folder)` of diffusers makes one"
        )
    if folder.is_dir():
        raise ConfigError(
            f"model.path: {path!r} is no folder in diffusers format (it has no model_index.json)"
        )
    if _names_a_folder(path):
        folders = " or in ".join(dict.fromkeys(map(str, (Path.cwd(), PROJECT_FOLDER))))
        looked_in = "" if folder == Path(path) else f" in {folders}"
        raise ConfigError(f"model.path: there is no folder {path!r}{looked_in}")
    return path


def _names_a_folder(path: str) -> bool:
    """Whether a path cannot be a hub id, or is inside an existing folder."""
    if not _HUB_ID.fullmatch(path):
        return True
    return "/" in path and any((root / path).parent.is_dir() for root in (Path.cwd(), PROJECT_FOLDER))
