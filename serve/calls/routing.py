"""Routes an image to the denoiser with the least work.

Serve's own router draws two replicas and takes the one with fewer requests. Then an image of 4 steps counts
as much as one of 50, two are a narrow choice among many, and requests on their way to a replica are not
counted, so bursts pile up. The denoiser's options name this router. It runs wherever a handle does.
"""

import asyncio
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.engine.messages import DenoiseRequest
from serve.config.internal import ROUTING_STATS_PERIOD_S

SAID_WITHIN_S = 3 * ROUTING_STATS_PERIOD_S  # the way through Serve's controller included


class Outstanding:
    """The work that a handle has sent to replicas and that is not done.

    A handle knows exactly what it has sent itself. Of other handles' requests it knows only the number, from
    the replica's last answer. Each of these counts as much as the mean of its own.
    """

    def __init__(self) -> None:
        self._sent: dict[Hashable, tuple[Hashable, float]] = {}
        self._work_s: defaultdict[Hashable, float] = defaultdict(float)
        self._number: Counter[Hashable] = Counter()

    def assign(self, call: Hashable, replica: Hashable, work_s: float) -> None:
        """Assigns a call to a replica. An earlier assignment ends."""
        self.finish(call)
        self._sent[call] = replica, work_s
        self._work_s[replica] += work_s
        self._number[replica] += 1

    def finish(self, call: Hashable) -> None:
        """Ends a call's assignment, if it has one."""
        if call not in self._sent:
            return
        replica, work_s = self._sent.pop(call)
        self._work_s[replica] -= work_s
        self._number[replica] -= 1
        if not self._number[replica]:
            del self._work_s[replica], self._number[replica]

    def of(self, replica: Hashable, num_ongoing: int) -> float:
        """Device-seconds on a replica. num_ongoing: requests of all handles, by the replica's last answer"""
        of_others = max(0, num_ongoing - self._number[replica])
        mean_s = sum(self._work_s.values()) / len(self._sent) if self._sent else 1.0
        return self._work_s.get(replica, 0.0) + of_others * mean_s


class HeldModels:
    """The models that replicas hold, or will when they get to what a handle has sent them.

    A replica says every few seconds what it holds. Until it has said so, what was sent counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: dict[tuple[Hashable, str], float] = {}  # when, by replica and model

    def sent(self, replica: Hashable, model: str | None) -> None:
        """Records that an image of a model was sent to a replica."""
        now = self._clock()
        self._sent = {key: at for key, at in self._sent.items() if now - at < SAID_WITHIN_S}
        if model is not None:
            self._sent[replica, model] = now

    def load_s(self, replica: Hashable, said: Mapping[str, Any], model: str | None) -> float:
        """Seconds until a replica has a model; 0 if it holds it. said: by Denoiser.record_routing_stats"""
        if model is None or model in said.get("models", (model,)):
            return 0.0
        is_new = self._clock() - self._sent.get((replica, model), -math.inf) < SAID_WITHIN_S
        return 0.0 if is_new else float(said["load_s"])


class LeastWorkRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Serve's have no types
    """Weighs calls whose first argument is a DenoiseRequest; other calls weigh nothing.

    A call counts from the moment when its replica is chosen, not from when the replica has answered. A
    replica that does not hold the image's model weighs as much more as it takes to load one.
    """

    # Serve passes over a replica that has not said within this time whether it has room. Its own 0.1 s is
    # less than a busy host may need, and the image would then go to a replica with more to do.
    queue_len_response_deadline_s = 1.0

    def initialize_state(self, **_: Any) -> None:
        """Called by Serve."""
        self._outstanding = Outstanding()
        self._held = HeldModels()
        # Calls whose replica has not answered yet, with the ids under which Serve reports their end. Serve
        # gives the same id to all calls of an HTTP request, so the future identifies the call.
        self._unanswered: dict[asyncio.Future[Any], tuple[ReplicaID, str]] = {}

    async def choose_replicas(
        self,
        candidate_replicas: Sequence[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Called by Serve: the replica with the least work, then all others in case it has no room."""
        if not candidate_replicas:
            return []
        ongoing = self.replica_queue_len_cache.get
        model = _model(pending_request)
        best, *others = sorted(
            random.sample(candidate_replicas, len(candidate_replicas)),  # ties are broken at random
            key=lambda one: (
                self._outstanding.of(one.replica_id, ongoing(one.replica_id) or 0)
                + self._held.load_s(one.replica_id, one.routing_stats, model)
            ),
        )
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # wait if none has room
            self._expect(pending_request, best.replica_id)
        return [[best], others]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve when the replica has accepted the request."""
        call = pending_request.future
        self._unanswered.pop(call, None)
        self._outstanding.assign(call, replica_id, _work_s(pending_request))
        self._held.sent(replica_id, _model(pending_request))
        # The callback runs on a thread of Ray's.
        finish = partial(asyncio.get_running_loop().call_soon_threadsafe, self._outstanding.finish, call)
        result.add_done_callback(lambda _: finish())

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve, also for calls that a replica refused, and if it died before it answered."""
        ended = replica_id, internal_request_id
        for call in [call for call, unanswered in self._unanswered.items() if unanswered == ended]:
            self._forget(call)

    def _expect(self, pending_request: PendingRequest, replica_id: ReplicaID) -> None:
        call = pending_request.future
        if call not in self._unanswered:
            call.add_done_callback(lambda call: self._forget(call) if call.cancelled() else None)
        self._unanswered[call] = replica_id, pending_request.metadata.internal_request_id
        self._held.sent(replica_id, _model(pending_request))
        self._outstanding.assign(call, replica_id, _work_s(pending_request))

    def _forget(self, call: "asyncio.Future[Any]") -> None:
        self._unanswered.pop(call, None)
        self._outstanding.finish(call)


def _work_s(pending_request: PendingRequest) -> float:
    first = next(iter(pending_request.args), None)
    return work_s(first) if isinstance(first, DenoiseRequest) else 0.0


def _model(pending_request: PendingRequest | None) -> str | None:
    first = next(iter(pending_request.args), None) if pending_request else None
    return first.model if isinstance(first, DenoiseRequest) else None


def work_s(request: DenoiseRequest) -> float:
    """Device-seconds of a call. Before costs are known, no call has any, and all weigh the same."""
    return 1.0 if request.work_left_s is None else request.work_left_s
