"""Calls that survive the death of a replica. Ray does not retry a request whose replica died.

Encoding and decoding change nothing and are called again. Denoising continues from its last checkpoint. Both
run isolated until it is clear which request, if any, killed the replica (deployments.isolation). The first
death counts against every request that was under way. Later ones count only against the request in its turn.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from deployments.engine.messages import Checkpoint, DenoiseEvent, DenoiseFailed, DenoiseRequest
from deployments.engine.model_source import ModelRef
from deployments.engine.stage_errors import Fault, StageError
from deployments.isolation import Turn, begin
from serve.errors import (
    AdapterUnusableError,
    GenerationFailedError,
    ModelUnloadableError,
    NotFiniteError,
    OutOfDeviceMemoryError,
    PoisonousRequestError,
)

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")

# A call gives up after this many deaths, whoever may be at fault.
MAX_ATTEMPTS = 6
# A request that met this many deaths, the later ones in its own turn, is taken as their cause.
MAX_DEATHS_CAUSED = 2
# The second attempt begins at once. Later ones wait this many seconds, doubled each time, because a dead
# replica may still be routed to for a moment.
BACK_OFF_S = 0.25
# Raised by a call if its replica is gone, if the node with its result is gone, or if its handler raised.
_REPLICA_ERRORS = (RayActorError, ObjectLostError, RayTaskError)


class _Deaths:
    """The deaths that one request has seen."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._attempts = 0
        self._caused = 0

    def clear(self) -> None:
        """The work under way when a replica died has got past that point."""
        self._caused = 0

    async def survive(self, error: RayError, under_way: bool) -> None:
        """Returns when the next attempt may begin. under_way: whether the request may have caused the death

        Raises PoisonousRequestError and GenerationFailedError if another attempt would not help.
        """
        self._attempts += 1
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, StageError):
            raise _failure(cause.fault, cause.detail) from error
        # A call through another deployment raises a RayTaskError whose cause is the dead replica's error.
        if not isinstance(cause, RayActorError | ObjectLostError):
            raise GenerationFailedError(f"A stage failed: {type(error).__name__}.") from error
        self._caused += under_way
        if self._caused == MAX_DEATHS_CAUSED:
            raise PoisonousRequestError(
                f"{self._caused} replicas died from this request; it is not tried again."
            ) from error
        if self._attempts == MAX_ATTEMPTS:
            raise GenerationFailedError(f"{self._attempts} replicas have died under this request.") from error
        logger.warning(
            "request %s: a replica died, attempt %d of %d follows",
            self._request_id,
            self._attempts + 1,
            MAX_ATTEMPTS,
        )
        if self._attempts > 1:
            await asyncio.sleep(BACK_OFF_S * 2.0 ** (self._attempts - 2))


async def denoise(
    handle: DeploymentHandle, request: DenoiseRequest, model: ModelRef
) -> AsyncGenerator[DenoiseEvent, None]:
    """One image's events, the last its latents, even if replicas die. Leaving the iterator aborts the image.

    A request that reaches its next checkpoint has passed the fatal step and is cleared.
    Raises PoisonousRequestError and GenerationFailedError.
    """
    deaths = _Deaths(request.request_id)
    while True:
        under_way = not request.isolated
        response = handle.options(stream=True).denoise.remote(request, model)
        try:
            async for event in response:
                match event:
                    case Turn():
                        under_way = True
                        await begin(handle, event)
                        continue
                    case Checkpoint():
                        request = replace(request, resume_from=event, isolated=False)
                        deaths.clear()
                    case DenoiseFailed(_, reason, fault):
                        raise _failure(fault, reason)
                yield event
            return
        except _REPLICA_ERRORS as error:
            await deaths.survive(error, under_way)
        finally:
            response.cancel()
        request = replace(request, isolated=True)


async def call(request_id: str, handle: DeploymentHandle, method: str, *arguments: Any) -> Any:
    """The result of a stage's method, even if replicas die.

    Later attempts call the stage's streaming `<method>_isolated` (deployments.isolation).
    Raises PoisonousRequestError and GenerationFailedError.
    """
    deaths = _Deaths(request_id)
    try:
        return await call_once(getattr(handle, method).remote, *arguments)
    except _REPLICA_ERRORS as error:
        await deaths.survive(error, under_way=True)
    isolated = getattr(handle.options(stream=True), f"{method}_isolated")
    while True:
        under_way = False
        response = isolated.remote(*arguments)
        try:
            async for event in response:
                if not isinstance(event, Turn):
                    return event
                under_way = True
                await begin(handle, event)
        except _REPLICA_ERRORS as error:
            await deaths.survive(error, under_way)
        finally:
            response.cancel()


async def retried(request_id: str, attempt_call: Callable[[], Awaitable[Result]]) -> Result:
    """Calls again if a replica died under the call. For calls that cannot have caused the death.

    Raises GenerationFailedError.
    """
    deaths = _Deaths(request_id)
    while True:
        try:
            return await attempt_call()
        except _REPLICA_ERRORS as error:
            await deaths.survive(error, under_way=False)


async def call_once(remote: Callable[..., Any], *arguments: Any) -> Any:
    """A unary call. If it is left here, it is cancelled downstream, which Serve does not do by itself."""
    response = remote(*arguments)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def _failure(fault: Fault, detail: str) -> GenerationFailedError:
    """The client's error for a stage that could not do a request's work."""
    match fault:
        case Fault.OUT_OF_MEMORY:
            return OutOfDeviceMemoryError(detail)
        case Fault.NOT_FINITE:
            return NotFiniteError(detail)
        case Fault.UNLOADABLE:
            return ModelUnloadableError(detail)
        case Fault.ADAPTER:
            return AdapterUnusableError(detail)
    return GenerationFailedError("A stage failed: an internal error.")
