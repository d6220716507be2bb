"""The choice of a replica for a call, as Serve makes it for denoisers and for the other stages."""

import random
from collections.abc import Hashable, Sequence
from typing import TypeVar

from simpy import Environment

from cluster.plan.pool import Member
from deployments.engine.messages import DenoiseRequest
from serve.calls.routing import HeldModels, Outstanding, work_s

Call = TypeVar("Call")


class LeastWorkRouter:
    """Midstep's own, for denoisers, with the weights of serve.calls.routing: the seconds of work that a
    replica has, and those of a load if it does not hold the image's model."""

    def __init__(self, env: Environment, seed: int) -> None:
        self._outstanding = Outstanding()
        self._held = HeldModels(lambda: float(env.now))
        self._rng = random.Random(seed)

    def choose(
        self, members: Sequence[Member[DenoiseRequest]], call: DenoiseRequest
    ) -> Member[DenoiseRequest]:
        shuffled = self._rng.sample(members, len(members))  # ties are broken at random
        return min(
            shuffled,
            key=lambda member: (
                self._outstanding.of(member, member.ongoing)
                + self._held.load_s(member, member.said, call.model)
            ),
        )

    def assign(self, key: Hashable, member: Member[DenoiseRequest], call: DenoiseRequest) -> None:
        self._held.sent(member, call.model)
        self._outstanding.assign(key, member, work_s(call))

    def finish(self, key: Hashable) -> None:
        self._outstanding.finish(key)


class LessBusyRouter:
    """Serve's own: two replicas are drawn, and the one with fewer calls is taken."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def choose(self, members: Sequence[Member[Call]], call: Call) -> Member[Call]:
        drawn = self._rng.sample(members, min(2, len(members)))
        return min(drawn, key=lambda member: member.ongoing)

    def assign(self, key: Hashable, member: Member[Call], call: Call) -> None:
        """Only the number of calls counts, which members know."""

    def finish(self, key: Hashable) -> None:
        """As for `assign`."""
