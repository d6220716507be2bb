"""The models that a simulated denoiser holds: the engine's pool without threads and weights."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from simpy import Environment, Event

from deployments.engine.model_pool import Slot, next_load

CONFIGURED = ""  # the model of requests that name none, which every denoiser holds from the start


@dataclass(slots=True)
class Loads:
    """What the models of a run cost, counted by all its denoisers.

    number: of loads; waited: ids of the images whose model was not there at some time
    """

    number: int = 0
    waited: set[str] = field(default_factory=set)


class ModelSlots:
    """Loads models beside the steps, one at a time, in the order of the engine's pool.

    loaded: called after each load
    """

    def __init__(self, env: Environment, num_slots: int, load_s: float, loaded: Callable[[], None]) -> None:
        self._env = env
        self._load_s = load_s
        self._loaded = loaded
        self._slots = [Slot() for _ in range(num_slots)]
        self._slots[0].model = CONFIGURED
        self._under_way: str | None = None
        self._next: tuple[str, Slot] | None = None  # begins when the slot is no longer busy

    @property
    def resident(self) -> tuple[str, ...]:
        """The models that are there, and the one that is being loaded."""
        there = tuple(slot.model for slot in self._slots if slot.model is not None and self._is_there(slot))
        return there if self._under_way is None else (*there, self._under_way)

    @property
    def usual_load_s(self) -> float:
        return self._load_s

    def holds(self, model: str) -> bool:
        return any(slot.model == model and self._is_there(slot) for slot in self._slots)

    def _is_there(self, slot: Slot) -> bool:
        """Whether the slot's model gets forwards: one that is about to go does not."""
        return slot.model is not None and (self._next is None or slot is not self._next[1])

    def load_s(self, model: str) -> float:
        return 0.0 if self.holds(model) else self._load_s

    def arrange(self, slacks: Mapping[str, float], busy: Collection[str]) -> None:
        """Begins the next load if none is under way. The arguments are those of the engine's pool."""
        for slot in self._slots:
            if slot.model in slacks:
                slot.used_at = self._env.now
        if self._under_way is None and self._next is None:
            self._next = next_load(slacks, self._slots, busy, self._load_s, self._env.now)
        if self._next is not None and self._next[1].model not in busy:
            self._begin(*self._next)
            self._next = None

    def _begin(self, model: str, slot: Slot) -> None:
        self._under_way, slot.model = model, None

        def end(_: Event) -> None:
            self._under_way, slot.model = None, model
            slot.loaded_at = slot.used_at = self._env.now
            self._loaded()

        self._env.timeout(self._load_s).callbacks.append(end)
