"""The section `model` of the configuration, and the files of costs that it names."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from deployments.engine.cost import CostModel
from deployments.engine.models import ModelSource, Placement
from serve.config.schema import ConfigError, Section

PROJECT_FOLDER = Path(__file__).parents[2]

Size = Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")]  # WIDTHxHEIGHT in pixels


def _project_path(path: str) -> Path:
    """A relative path is looked for where the process runs and then in the project."""
    return Path(path).absolute() if Path(path).exists() else PROJECT_FOLDER / path


class CostModelFile(Section):
    """What `midstep profile` writes. path, dtype: the model's; device: for people."""

    path: str
    dtype: str
    device: str
    cost_model: CostModel


class ModelConfig(Section):
    """What is served."""

    id: str = Field("shapes", min_length=1, description="the name that clients use")
    path: str = Field("models/shapes", description="a folder in diffusers format, or a hub id")
    revision: str | None = Field(None, description="a hub revision")
    variant: str | None = Field(None, description="a weight variant, for example `fp16`")
    device: Literal["auto", "cpu", "cuda", "simulated"] = Field(
        "auto",
        description="`auto` takes CUDA where there is one; `simulated` makes grey pictures in the time that "
        "`model.cost_model` says",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="what the model computes in"
    )
    attention: Literal["sdpa", "xformers"] = Field("sdpa", description="the attention implementation")
    compile: bool = Field(False, description="`torch.compile` the U-Net: starts slower, runs faster")
    compile_cache: str = Field("build/compile", description="a folder that keeps what was compiled")
    sizes: tuple[Size, ...] = Field(
        (), description="sizes like `512x768` that are warmed up and measured at start, beside the default"
    )
    cost_model: str | None = Field(
        None, description="a file of `midstep profile`, so that nothing is measured at start"
    )

    @model_validator(mode="after")
    def _check_device(self) -> "ModelConfig":
        if self.device == "simulated" and self.cost_model is None:
            raise ValueError("device: simulated needs cost_model, a file of `midstep profile`")
        return self

    @property
    def shown_id(self) -> str:
        """For what people look at."""
        return f"{self.id} (simulated device)" if self.device == "simulated" else self.id

    def source(self) -> ModelSource:
        """A relative path is looked for where the process runs and in the project; else it is a hub id."""
        folder = _project_path(self.path)
        if (folder / "model_index.json").exists():
            return ModelSource(str(folder), self.revision, self.variant)
        if self.path.startswith((".", "/", "~")):
            raise ConfigError(
                f"model.path: {self.path!r} is no folder in diffusers format (it has no model_index.json)"
            )
        return ModelSource(self.path, self.revision, self.variant)

    def placement(self) -> Placement:
        cache = str(Path(self.compile_cache).absolute()) if self.compile else None
        return Placement(self.device, self.dtype, self.attention, cache)

    def known_cost(self) -> CostModel | None:
        """Raises ConfigError for a file that cannot be read."""
        file = self.cost_file()
        return file.cost_model if file else None

    def cost_file(self) -> CostModelFile | None:
        """Likewise, with what was measured."""
        if self.cost_model is None:
            return None
        try:
            file = CostModelFile.model_validate_json(_project_path(self.cost_model).read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"model.cost_model: {self.cost_model!r} is no file of `midstep profile`: {error}"
            ) from error
        if self.device != "simulated" and (file.path, file.dtype) != (self.path, self.dtype):
            raise ConfigError(
                f"model.cost_model: {self.cost_model!r} was measured with {file.path!r} in {file.dtype}, "
                f"and {self.path!r} in {self.dtype} is to be served"
            )
        return file
