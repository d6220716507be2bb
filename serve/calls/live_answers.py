"""The types of the live status, for the code that makes it and for the OpenAPI document."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from deployments.running_batch import State

Time = Annotated[float, Field(description="Seconds since the epoch.")]


class LiveReplicas(TypedDict):
    """The replicas of a stage by state."""

    running: int
    starting: int
    stopping: int


class LiveStages(TypedDict):
    """The replicas of all stages."""

    ingress: LiveReplicas
    encoder: LiveReplicas
    denoiser: LiveReplicas
    decoder: LiveReplicas
    runner: LiveReplicas


class LiveQueue(TypedDict):
    """The work in the denoisers."""

    images: Annotated[int, Field(description="Images in the denoisers.")]
    waiting: Annotated[int, Field(description="Those of them that were in no forward yet.")]
    work_s: Annotated[float, Field(description="Device-seconds of them that are left.")]
    seconds: Annotated[float, Field(description="The same for each running denoiser.")]


class LiveRates(TypedDict):
    """What was done lately."""

    forwards_per_s: float
    rows_per_forward: Annotated[float, Field(description="The mean.")]
    images_per_s: float


class LiveThroughput(LiveRates):
    """What all denoisers together have done lately."""

    window_s: Annotated[float, Field(description="Seconds that the rates of this status are of.")]


_Pass = TypedDict(
    "_Pass",
    {"pass": Annotated[int, Field(description="0, or 1 for the second pass of an image with `hires`.")]},
)


class LiveRequest(_Pass):
    """An image in a denoiser, or one that has left it within the last ten seconds."""

    id: Annotated[
        str,
        Field(
            description="The first 12 hexadecimal digits of the SHA-256 of the request's `x-request-id`, or "
            "of the prediction's `id`, which has it as `live_id`."
        ),
    ]
    image: Annotated[int, Field(description="Its index among the images of its request.")]
    model: Annotated[str | None, Field(description="Its id; null for one that is no longer served.")]
    width: int
    height: int
    steps: Annotated[int, Field(description="The steps of this pass.")]
    step: Annotated[int, Field(description="Those that are done.")]
    rows: Annotated[int, Field(description="Its rows in a forward: 2 with guidance, else 1.")]
    state: State
    came_at: Time
    joined_at: Annotated[float | None, Field(description="When its first forward began.")]
    left_at: float | None
    first_forward: Annotated[int | None, Field(description="A number as `forwards` counts them.")]
    last_forward: int | None


class LiveDenoiser(LiveRates):
    """A denoiser that has answered."""

    id: str
    models: Annotated[list[str], Field(description="The served models that are on its device.")]
    max_rows: Annotated[int, Field(description="The most rows in a forward of images of the usual size.")]
    forwards: Annotated[int, Field(description="Since its start, as the next two.")]
    rows: int
    images: int
    requests: list[LiveRequest]


class LiveStatus(TypedDict):
    """What runs at the moment."""

    object: Literal["status"]
    now: Time
    device: Annotated[
        str, Field(description="`cpu`, `cuda` or `simulated`; maybe `auto` until a denoiser has answered.")
    ]
    stages: LiveStages
    queue: LiveQueue
    throughput: LiveThroughput
    denoisers: list[LiveDenoiser]
