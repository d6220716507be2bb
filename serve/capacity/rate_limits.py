"""Rate limits of clients in device-seconds per minute, charged at acceptance by the cost model.

A charge stays even if the request is canceled, fails or misses its deadline, because part of it may be done
by then. It wears off within minutes in any case.
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
    """Holds one minute of a client's limit, and fills up within a minute. Costs are in seconds of filling, so
    that the limit itself may change meanwhile.

    A cost above the capacity passes when the bucket is full, and later requests wait for the rest as well.
    Over time nobody gets more than the limit, and no request is too large for it.
    """

    def __init__(self) -> None:
        self._full_at = -math.inf

    def take(self, cost_s: float, now: float) -> float:
        """Takes the cost and returns 0, or takes nothing and returns the seconds until it could."""
        missing_s = max(0.0, self._full_at - now)
        wait_s = missing_s + min(cost_s, _MINUTE_S) - _MINUTE_S
        if wait_s > 0:
            return wait_s
        self._full_at = now + missing_s + cost_s
        return 0.0

    def give_back(self, cost_s: float) -> None:
        """Returns a cost that was taken a moment ago."""
        self._full_at -= cost_s


class RateLimits:
    """This ingress replica's share of the limits of all clients.

    num_ingresses: current number of replicas that share each limit in equal parts
    """

    def __init__(
        self,
        num_ingresses: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_ingresses = num_ingresses
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}  # by the client's name

    def check(self, client: Client) -> None:
        """Refuses a client whose limit is used up, whatever it asks for. Raises RateLimitError."""
        limit, bucket = client.device_seconds_per_minute, self._buckets.get(client.name)
        if limit is not None and bucket is not None and (wait_s := bucket.take(0.0, self._clock())):
            raise RateLimitError(
                f"This API key's limit of {limit:g} device-seconds per minute is used up. Try again in "
                f"{math.ceil(wait_s)} s.",
                retry_after_s=math.ceil(wait_s),
            )

    @contextmanager
    def charged(self, client: Client, request: GenerationRequest) -> Iterator[Callable[[], None]]:
        """Charges for the request. Raises RateLimitError, which says when to come again.

        The charge is given back if the request is refused inside, or when the yielded function is called. A
        request whose work is not known costs nothing.
        """
        limit, work_s = client.device_seconds_per_minute, request.work_s
        if limit is None or work_s is None:
            yield lambda: None
            return
        cost_s = work_s * self._num_ingresses() * _MINUTE_S / limit
        bucket = self._buckets.setdefault(client.name, TokenBucket())
        if wait_s := bucket.take(cost_s, self._clock()):
            raise RateLimitError(
                f"The request takes about {work_s:.2f} device-seconds; this API key's "
                f"limit of {limit:g} per minute leaves too few now. Try again in {math.ceil(wait_s)} s.",
                retry_after_s=math.ceil(wait_s),
            )
        try:
            yield lambda: bucket.give_back(cost_s)
        except MidstepError:
            bucket.give_back(cost_s)
            raise
