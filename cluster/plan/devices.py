"""Simulated devices: their time is shared by running calls, and their price by the replicas on them."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from simpy import Environment, Event


class Sharing(StrEnum):
    """What shares a device's time and so slows down.

    NOTHING: each replica has a whole device, as simulated ones have
    STAGES: the replicas that are placed on one device
    MACHINE: all replicas and all other work of a request, on CPUs; each denoiser adds a share of CPUs
    """

    NOTHING = "nothing"
    STAGES = "stages"
    MACHINE = "machine"


class Device:
    """Processor sharing: with room for one call, each of n calls at once takes n times as long."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._room = 1
        self._calls: list[tuple[float, int, Event]] = []  # a heap: when each ends, by _clock_s
        self._order = count()
        self._clock_s = 0.0  # seconds of work done for each running call since the device was idle
        self._read_at = 0.0
        self._wake_up: Event | None = None

    def run(self, seconds: float) -> Event:
        """An event at the end of a call that takes this long alone."""
        self._read()
        ended = self._env.event()
        heapq.heappush(self._calls, (self._clock_s + seconds, next(self._order), ended))
        self._sleep()
        return ended

    def has_room_for(self, calls: int) -> None:
        """Sets how many calls run at once at full speed."""
        self._read()
        self._room = max(1, calls)
        self._sleep()

    @property
    def _slowdown(self) -> float:
        return max(1.0, len(self._calls) / self._room)

    def _read(self) -> None:
        now = self._env.now
        if self._calls:
            self._clock_s += (now - self._read_at) / self._slowdown
        else:
            self._clock_s = 0.0
        self._read_at = now

    def _sleep(self) -> None:
        """Waits until the next call ends, unless another begins before."""
        if not self._calls:
            return
        left_s = max(0.0, self._calls[0][0] - self._clock_s) * self._slowdown
        self._wake_up = self._env.timeout(left_s)
        self._wake_up.callbacks.append(self._end)

    def _end(self, wake_up: Event) -> None:
        if wake_up is not self._wake_up:
            return  # a newer wake-up exists, as a call has begun since
        ends_s = self._calls[0][0]
        self._read()
        self._clock_s = ends_s  # exact, unlike the sum in floating point
        while self._calls and self._calls[0][0] <= ends_s:
            heapq.heappop(self._calls)[2].succeed()
        self._sleep()


@dataclass(eq=False, slots=True)
class Place:
    """One device of the fleet. free: the share that no replica has"""

    device: Device
    free: float = 1.0
    tenants: int = 0


@dataclass(eq=False, slots=True)
class Devices:
    """The devices of a fleet. A replica gets the first device where its share is free.

    held_s: device-seconds held so far; most: most devices held at once
    """

    env: Environment
    sharing: Sharing
    places: list[Place] = field(default_factory=list)
    most: int = 0
    _held_s: float = 0.0
    _held_until: float = 0.0
    _machine: Device = field(init=False)

    def __post_init__(self) -> None:
        self._machine = Device(self.env)

    def take(self, share: float) -> tuple[Place, Device]:
        """The place, and the device that the replica runs on."""
        self._count()
        place = next((place for place in self.places if place.tenants and place.free >= share - 1e-9), None)
        place = place or next((place for place in self.places if not place.tenants), None)
        if place is None:
            place = Place(Device(self.env))
            self.places.append(place)
        place.free -= share
        place.tenants += 1
        self.most = max(self.most, self.num_held)
        self._machine.has_room_for(self.num_held)
        match self.sharing:
            case Sharing.NOTHING:
                return place, Device(self.env)
            case Sharing.STAGES:
                return place, place.device
            case Sharing.MACHINE:
                return place, self._machine

    def give_back(self, place: Place, share: float) -> None:
        self._count()
        place.free += share
        place.tenants -= 1
        self._machine.has_room_for(self.num_held)

    @property
    def num_held(self) -> int:
        return sum(place.tenants > 0 for place in self.places)

    @property
    def held_s(self) -> float:
        self._count()
        return self._held_s

    def outside(self) -> Callable[[float], Event]:
        """The function that spends a request's time outside of the stages."""
        return self._machine.run if self.sharing is Sharing.MACHINE else self.env.timeout

    def _count(self) -> None:
        self._held_s += self.num_held * (self.env.now - self._held_until)
        self._held_until = self.env.now
