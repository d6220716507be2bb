"""The replicas of a simulated stage, and the calls that they get."""

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from simpy import Environment, Event

from cluster.plan.devices import Device, Devices, Place
from cluster.plan.stages import Process, Replica
from deployments.work import Tally
from serve.config.internal import ROUTING_STATS_PERIOD_S

Call = TypeVar("Call")


@dataclass(eq=False, slots=True)
class Member(Generic[Call]):
    """A replica, its place, and its calls. said: to routers, the last time that it was asked"""

    replica: Replica[Call]
    place: Place
    running: bool = False
    leaving: bool = False
    ongoing: int = 0
    tally: Tally = field(default_factory=Tally)
    said: Mapping[str, Any] = field(default_factory=dict)


class Router(Protocol[Call]):
    """Chooses a replica for a call, and hears of the call until it is done."""

    def choose(self, members: Sequence[Member[Call]], call: Call) -> Member[Call]: ...
    def assign(self, key: Hashable, member: Member[Call], call: Call) -> None: ...
    def finish(self, key: Hashable) -> None: ...


class Pool(Generic[Call]):
    """Sends a call to a replica with room. Calls without one wait in order of arrival.

    share: of a device; max_ongoing: most calls of a replica at once
    """

    def __init__(
        self,
        env: Environment,
        devices: Devices,
        build: Callable[[Device], Replica[Call]],
        share: float,
        max_ongoing: int,
        router: Router[Call],
    ) -> None:
        self._env = env
        self._devices = devices
        self._build = build
        self._share = share
        self._max_ongoing = max_ongoing
        self._router = router
        self._members: list[Member[Call]] = []
        self._waiting: deque[tuple[Event, Call]] = deque()
        self.history: list[tuple[float, int]] = []  # (second, running and starting replicas)
        env.process(self._ask())

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
        self._router.finish(assigned)
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
            member = self._router.choose(with_room, call)
            member.ongoing += 1  # at once, as others are assigned before the process goes on
            self._router.assign(assigned, member, call)
            assigned.succeed(member)

    def _ask(self) -> Process:
        """Lets the replicas say now and then what routers should know, as Serve does."""
        while True:
            for member in self.running:
                member.said = member.replica.routing_stats()
            yield self._env.timeout(ROUTING_STATS_PERIOD_S)

    def _start(self, member: Member[Call], _: Event) -> None:
        member.running = True
        self._assign()

    def _let_go(self, member: Member[Call]) -> None:
        if member.leaving and not member.ongoing and member in self._members:
            self._members.remove(member)
            self._devices.give_back(member.place, self._share)
