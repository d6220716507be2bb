"""What clients may ask for: so many device-seconds a minute each, charged by the cost model at acceptance.

What was accepted stays charged, also if it is canceled, fails or misses its deadline: part of it may have
been done by then. Before long it no longer counts in any case.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.clients import Client
from serve.errors import MidstepError, RateLimitError
from serve.generation import GenerationRequest

_MINUTE_S = 60.0


class TokenBucket:
    """Holds a minute of a client's limit and fills up within one. Costs are in seconds of filling, so that
    the limit itself may change meanwhile.

    What costs more than it holds passes once it is full, and those that come then wait for the rest as well:
    over time nobody gets more than the limit, and no request is too large for it.
    """

    def __init__(self) -> None:
        self._full_at = -math.inf

    def take(self, cost_s: float, now: float) -> float:
        """0 if it was taken; else nothing was, and in so many seconds it could be."""
        missing_s = max(0.0, self._full_at - now)
        wait_s = missing_s + min(cost_s, _MINUTE_S) - _MINUTE_S
        if wait_s > 0:
            return wait_s
        self._full_at = now + missing_s + cost_s
        return 0.0

    def give_back(self, cost_s: float) -> None:
        """What was taken a moment ago."""
        self._full_at -= cost_s


class RateLimits:
    """The limits of all clients, as far as they are this ingress replica's to enforce.

    num_ingresses: replicas that share each limit in equal parts, at the moment
    """

    def __init__(
        self,
        num_ingresses: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_ingresses = num_ingresses
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}  # by the client's name

    @contextmanager
    def charged(self, client: Client, request: GenerationRequest) -> Iterator[Callable[[], None]]:
        """Charges for the request. Raises RateLimitError, which says when to come again.

        What is refused within is given back, and what the function that it yields is called for. Nothing is
        charged for a request whose work is not known.
        """
        limit, work_s = client.device_seconds_per_minute, request.work_s
        if limit is None or work_s is None:
            yield lambda: None
            return
        cost_s = work_s * self._num_ingresses() * _MINUTE_S / limit
        bucket = self._buckets.setdefault(client.name, TokenBucket())
        if wait_s := bucket.take(cost_s, self._clock()):
            raise RateLimitError(
                f"The request takes about {work_s:.2f} device-seconds; of the {limit:g} per minute that this "
                f"API key has, too few are left for it now. Try again in {math.ceil(wait_s)} s.",
                retry_after_s=math.ceil(wait_s),
            )
        try:
            yield lambda: bucket.give_back(cost_s)
        except MidstepError:
            bucket.give_back(cost_s)
            raise
