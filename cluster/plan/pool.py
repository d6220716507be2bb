"""The replicas of a simulated stage, and the choice of a replica for a call."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from simpy import Environment, Event

from cluster.plan.devices import Device, Devices, Place
from cluster.plan.stages import Process, Replica
from deployments.work import Tally
from serve.calls.routing import Outstanding

Call = TypeVar("Call")


@dataclass(eq=False, slots=True)
class Member(Generic[Call]):
    """A replica, its place, and its calls."""

    replica: Replica[Call]
    place: Place
    running: bool = False
    leaving: bool = False
    ongoing: int = 0
    tally: Tally = field(default_factory=Tally)


class Pool(Generic[Call]):
    """Sends a call to a replica with room. Calls without one wait in order of arrival.

    share: of a device; max_ongoing: most calls of a replica at once
    weigh: a call's weight; calls go to the replica with the least weight, as in serve.calls.routing. Without
    it, two replicas are drawn and the one with fewer calls is taken, as in Serve's own router
    """

    def __init__(
        self,
        env: Environment,
        devices: Devices,
        build: Callable[[Device], Replica[Call]],
        share: float,
        max_ongoing: int,
        seed: int,
        weigh: Callable[[Call], float] | None = None,
    ) -> None:
        self._env = env
        self._devices = devices
        self._build = build
        self._share = share
        self._max_ongoing = max_ongoing
        self._weigh = weigh
        self._outstanding = Outstanding()
        self._rng = random.Random(seed)
        self._members: list[Member[Call]] = []
        self._waiting: deque[tuple[Event, Call]] = deque()
        self.history: list[tuple[float, int]] = []  # (second, running and starting replicas)

    @property
    def running(self) -> list[Member[Call]]:
        return [member for member in self._members if member.running and not member.leaving]

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_replicas(self) -> int:
        """Number of running and starting replicas."""
        return sum(not member.leaving for member in self._members)

    @property
    def num_ongoing(self) -> int:
        return sum(member.ongoing for member in self._members)

    def resize(self, num_replicas: int, cold_start_s: float) -> None:
        """New replicas work after their cold start. Surplus ones, the newest first, finish their calls."""
        staying = [member for member in self._members if not member.leaving]
        for _ in range(num_replicas - len(staying)):
            place, device = self._devices.take(self._share)
            member = Member(self._build(device), place)
            self._members.append(member)
            self._env.timeout(cold_start_s).callbacks.append(partial(self._start, member))
        for member in staying[num_replicas:]:
            member.leaving = True
            self._let_go(member)
        self.history.append((self._env.now, num_replicas))

    def run(self, call: Call) -> Process:
        """The process of a call, which ends when the call is done."""
        assigned = self._assigned(call)
        member = yield assigned
        work_s = member.replica.work_s(call)
        member.tally.accept(work_s)
        yield member.replica.run(call)
        member.tally.finish(work_s)
        member.ongoing -= 1
        self._outstanding.finish(assigned)
        self._assign()
        self._let_go(member)

    def _assigned(self, call: Call) -> Event:
        assigned = self._env.event()
        self._waiting.append((assigned, call))
        self._assign()
        return assigned

    def _assign(self) -> None:
        while self._waiting and (
            with_room := [member for member in self.running if member.ongoing < self._max_ongoing]
        ):
            assigned, call = self._waiting.popleft()
            member = self._chosen(with_room)
            member.ongoing += 1  # at once, as others are assigned before the process goes on
            if self._weigh is not None:
                self._outstanding.assign(assigned, member, self._weigh(call))
            assigned.succeed(member)

    def _chosen(self, with_room: Sequence[Member[Call]]) -> Member[Call]:
        if self._weigh is None:
            drawn = self._rng.sample(with_room, min(2, len(with_room)))
            return min(drawn, key=lambda member: member.ongoing)
        shuffled = self._rng.sample(with_room, len(with_room))  # ties are broken at random
        return min(shuffled, key=lambda member: self._outstanding.of(member, member.ongoing))

    def _start(self, member: Member[Call], _: Event) -> None:
        member.running = True
        self._assign()

    def _let_go(self, member: Member[Call]) -> None:
        if member.leaving and not member.ongoing and member in self._members:
            self._members.remove(member)
            self._devices.give_back(member.place, self._share)
