"""Numbers that nobody needs to change, in one place.

A configuration can change them under `internal`, as tests do to wait less. `midstep keys` leaves them out,
because no release promises to keep them.
"""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from serve.config.schema import Section

# For every stage except the ingress. Unfinished work continues elsewhere.
STAGE_DRAIN_TIMEOUT_S = 120.0
# How often denoisers say which models they hold, for routers.
ROUTING_STATS_PERIOD_S = 2.0
# HTTP requests of an ingress replica, by which Serve's own policy computes the number of replicas.
INGRESS_TARGET_ONGOING_REQUESTS = 64
FORGET_AFTER_S = 30 * 24 * 3600.0


class InternalConfig(Section):
    """Intervals, sizes of caches and batches."""

    metrics_interval_s: PositiveFloat = Field(5, description="Seconds between reports of the load")
    look_back_period_s: PositiveFloat = Field(15, description="Seconds over which the load is averaged")
    upscale_delay_s: NonNegativeFloat = Field(5, description="Seconds for which the load must be high")
    encoder_max_batch_size: PositiveInt = Field(8, description="Most texts of a batch")
    encoder_cache_size: PositiveInt = Field(256, description="Texts whose embeddings are kept")
    batch_wait_timeout_s: NonNegativeFloat = Field(
        0.005, description="Longest wait in seconds of the first text of a batch"
    )
    max_hold_s: PositiveFloat = Field(
        0.2, description="Seconds; a batch that would hold the device for longer is decoded in parts"
    )
    checkpoint_interval_s: Annotated[float, Field(ge=0)] = Field(
        2.0, description="Seconds between an image's checkpoints: what it loses when its replica dies"
    )
    lease_s: PositiveFloat = Field(15.0, description="Seconds until a silent runner is taken for dead")
    poll_interval_s: PositiveFloat = Field(
        2.0, description="Seconds between looks for jobs and webhooks of which no news came"
    )
