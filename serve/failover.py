"""Calls that outlive the replica that served them: Ray does not retry a request whose replica died.

Encoding and decoding change nothing and are simply called again. Denoising goes on from its last checkpoint,
in isolation until it is clear which of the requests that were under way had killed the replica, if any had.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from deployments.engine.messages import Checkpoint, DenoiseEvent, DenoiseRequest, DenoisingStarted
from serve.errors import GenerationFailedError, PoisonousRequestError

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")

# A call that met this many deaths is given up, whoever may be at fault.
MAX_ATTEMPTS = 6
# One that met so many, the later ones alone, is taken for their cause.
MAX_DEATHS_CAUSED = 2
# What a call raises whose replica, or whose node with a result on it, is gone; and whose handler raised.
_REPLICA_ERRORS = (RayActorError, ObjectLostError, RayTaskError)


async def denoise(handle: DeploymentHandle, request: DenoiseRequest) -> AsyncGenerator[DenoiseEvent, None]:
    """One image's events, through the deaths of replicas. Leaving it aborts the image.

    The first death counts against every request that was under way, as any of them may have caused it; later
    ones only against the isolated request whose turn it was. A request that reaches its next checkpoint has
    passed the step that was fatal and is cleared.
    Raises PoisonousRequestError and GenerationFailedError.
    """
    deaths_caused = 0
    for attempt in range(1, MAX_ATTEMPTS + 1):
        under_way = not request.isolated
        response = handle.options(stream=True).denoise.remote(request)
        try:
            async for event in response:
                match event:
                    case Checkpoint():
                        request = replace(request, resume_from=event, isolated=False)
                        deaths_caused = 0
                    case DenoisingStarted():
                        under_way = True
                yield event
            return
        except _REPLICA_ERRORS as error:
            deaths_caused += under_way and _is_death(error)
            if deaths_caused == MAX_DEATHS_CAUSED:
                raise PoisonousRequestError(
                    f"{deaths_caused} replicas have died of this request; it is not tried again."
                ) from error
            _survive(error, request.request_id, attempt)
        finally:
            response.cancel()
        request = replace(request, isolated=True)


async def retried(request_id: str, attempt_call: Callable[[], Awaitable[Result]]) -> Result:
    """Calls again where a replica died under the call. Raises GenerationFailedError."""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return await attempt_call()
        except _REPLICA_ERRORS as error:
            _survive(error, request_id, attempt)
    raise AssertionError("the last attempt returns or raises")


async def call(remote: Callable[..., Any], *arguments: Any) -> Any:
    """A unary call that is cancelled downstream whenever it is left here, which Serve does not see to."""
    response = remote(*arguments)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def _is_death(error: RayError) -> bool:
    """A call through another deployment reports a dead replica as a RayTaskError with that cause."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, RayActorError | ObjectLostError)


def _survive(error: RayError, request_id: str, attempt: int) -> None:
    """Raises GenerationFailedError where another attempt would not help."""
    if not _is_death(error) or attempt == MAX_ATTEMPTS:
        raise GenerationFailedError(f"A stage failed: {type(error).__name__}.") from error
    logger.warning(
        "request %s: a replica died, attempt %d of %d follows", request_id, attempt + 1, MAX_ATTEMPTS
    )
