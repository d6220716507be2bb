"""The section `jobs` of the configuration."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from serve.config.schema import Section


class JobsConfig(Section):
    """Durable jobs: where they are kept and how they are run."""

    data_folder: str = Field(
        "data", description="keeps the job database, images and the webhook secret, where no others are named"
    )
    database_url: str | None = Field(
        None, description="`postgresql://...`, or `env:NAME` for a variable that has it; else SQLite"
    )
    object_store_url: str | None = Field(
        None, description="`s3://bucket/prefix`, `gs://`, `az://`, or `env:NAME`; else the data folder"
    )
    object_store_options: dict[str, str] = Field(
        default_factory=dict, description="for the object store: `endpoint`, `region`, ..."
    )
    presigned_urls: bool = Field(
        False, description="images are fetched from the object store, not through us"
    )
    public_url: str | None = Field(
        None, description="what clients reach this server by; else what each request was sent to"
    )
    webhook_secrets: tuple[str, ...] = Field(
        (), description="`whsec_...` or `env:NAME`, the newest first; else one is made and kept"
    )
    allow_private_webhooks: bool = Field(
        False, description="send webhooks to private addresses as well: for development"
    )
    max_running_images: PositiveInt | Literal["auto"] = Field(
        "auto", description="under way at once per runner; `auto`: a little more than the denoisers hold"
    )
    max_attempts: PositiveInt = Field(
        3, description="how often a job may fail in a row, or its runner die, without it coming further"
    )
    lease_s: PositiveFloat = Field(15.0, description="seconds until a silent runner is taken for dead")
    poll_interval_s: PositiveFloat = Field(
        2.0, description="seconds between looks for jobs and webhooks of which no news came"
    )
    retention_s: PositiveFloat = Field(
        7 * 24 * 3600.0, description="seconds that what is finished is kept, images and prompts"
    )
    forget_after_s: PositiveFloat = Field(
        30 * 24 * 3600.0, description="seconds until it is no longer known that there was such a job"
    )
    answer_retention_s: NonNegativeFloat = Field(
        3600.0, description="seconds that images of plain answers are kept for their URLs; 0: they have none"
    )
    num_runners: PositiveInt = Field(1, description="replicas of the runner")
    num_cpus: NonNegativeFloat = Field(0.25, description="CPUs that Ray reserves for a runner")
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="what Ray reserves for a runner besides, of what its nodes say they have",
    )

    @model_validator(mode="after")
    def _check_retention(self) -> "JobsConfig":
        if self.forget_after_s < self.retention_s:
            raise ValueError(
                f"forget_after_s ({self.forget_after_s:g}) is less than retention_s ({self.retention_s:g})"
            )
        return self

    def runner_options(self) -> dict[str, Any]:
        """For `Deployment.options`."""
        reserved = {"num_cpus": self.num_cpus, "resources": dict(self.resources)}
        return {"ray_actor_options": reserved, "num_replicas": self.num_runners}
