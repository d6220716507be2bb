"""The section `jobs` of the configuration."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from serve.config.internal import FORGET_AFTER_S
from serve.config.reservation import Reservation
from serve.config.schema import MAIN


class JobsConfig(Reservation):
    """Durable jobs: where they are stored and how they run."""

    data_folder: str = Field(
        "data",
        description="Folder of the job database, images, webhook secret and measured costs",
        json_schema_extra=MAIN,
    )
    database_url: str | None = Field(
        None,
        description="`postgresql://...`, or `env:NAME` for a variable that has it; `null`: SQLite in the "
        "data folder",
        json_schema_extra=MAIN,
    )
    object_store_url: str | None = Field(
        None,
        description="`s3://bucket/prefix`, `gs://`, `az://`, or `env:NAME`; `null`: the data folder",
        json_schema_extra=MAIN,
    )
    object_store_options: dict[str, str] = Field(
        default_factory=dict, description="Options of the object store: `endpoint`, `region`, ..."
    )
    presigned_urls: bool = Field(
        False, description="Whether clients fetch images from the object store itself"
    )
    public_url: str | None = Field(
        None, description="URL by which clients reach this server; `null`: the one that each request names"
    )
    webhook_secrets: tuple[str, ...] = Field(
        (), description="`whsec_...` or `env:NAME`, the newest first; `[]`: one is made and kept"
    )
    allow_private_webhooks: bool = Field(
        False,
        description="Whether webhooks may go to private addresses, and pictures to start from come from "
        "them: for development",
    )
    max_running_images: PositiveInt | Literal["auto"] = Field(
        "auto", description="Most images under way per runner; `auto`: a quarter more than the denoisers hold"
    )
    retention_s: PositiveFloat = Field(
        7 * 24 * 3600, description="Seconds for which finished jobs keep images and prompts"
    )
    answer_retention_s: NonNegativeFloat = Field(
        3600.0,
        description="Seconds for which images of plain answers are kept for their URLs; 0: they have none",
    )
    num_runners: PositiveInt = Field(1, description="Replicas of the runner")

    @property
    def forget_after_s(self) -> float:
        """Seconds until a job is forgotten completely."""
        return max(FORGET_AFTER_S, self.retention_s)

    def runner_options(self) -> dict[str, Any]:
        """The options for `Deployment.options`."""
        return {"ray_actor_options": self.ray_actor_options(), "num_replicas": self.num_runners}
