"""A stand-in for captures on CUDA: a graph runs its operations again, and pools follow torch's allocator."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Stream:
    device = torch.device("cuda", 0)

    def wait_stream(self, other: "Stream") -> None:
        pass


class OnStream:
    """Torch's own leaves the stream only where it is told to, and so does this."""

    def __init__(self, cuda: "Cuda", stream: Stream) -> None:
        self._cuda = cuda
        self._stream = stream

    def __enter__(self) -> None:
        self._before, self._cuda.stream = self._cuda.stream, self._stream

    def __exit__(self, *_: object) -> None:
        self._cuda.stream = self._before


class Recorded(TorchDispatchMode):
    """Keeps the operations that run under it with the tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Cuda:
    """The parts of torch.cuda that captures use, with the rules of its allocator's pools.

    fault: raised by steps under capture; ends: whether a capture ends although something in it failed
    """

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.ends = True
        self.is_lost = False
        self.is_capturing = False
        self.default = self.stream = Stream()
        self.num_pools = 0
        self.uses: dict[int, int] = {}  # by pool
        self.recording: set[int] = set()
        self.sent: list[torch.Size] = []
        # The pinned memory's allocator has a bare pointer to each graph whose capture has not ended.
        self.pointed_at: list[weakref.ref[Graph]] = []

    def pool(self) -> int:
        self.num_pools += 1
        return self.num_pools

    def begin(self, pool: int) -> None:
        if self.uses.get(pool) == 0 or pool in self.recording:
            raise RuntimeError(f"the pool {pool} takes no more captures")
        self.uses[pool] = self.uses.get(pool, 0) + 1
        self.recording.add(pool)

    def end(self, device: int, pool: int) -> None:
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)

    def release(self, device: int, pool: int) -> None:
        self.uses[pool] -= 1

    def synchronize(self, device: Any = None) -> None:
        if self.is_lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def on(self, stream: Stream) -> OnStream:
        return OnStream(self, stream)

    def send(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.sent.append(tensor.shape)
        return tensor.to(device)


class Graph:
    """A torch.cuda.CUDAGraph that runs the captured operations again."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._recorded = Recorded()
        self._has_ended = False
        self.pool = 0

    def capture_begin(self, pool: int, **_: Any) -> None:
        self.pool = pool
        self._cuda.begin(pool)
        self._cuda.is_capturing = True
        self._recorded.__enter__()

    def capture_end(self) -> None:
        self._recorded.__exit__(None, None, None)
        self._cuda.is_capturing = False
        if self._cuda.fault is not None and not self._cuda.ends:
            self._cuda.pointed_at.append(weakref.ref(self))
            raise torch.AcceleratorError("operation failed due to a previous error during capture")
        self._cuda.end(0, self.pool)
        self._has_ended = True

    def replay(self) -> None:
        for func, args, kwargs, result in self._recorded.calls:
            for before, now in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                before.copy_(now)

    def reset(self) -> None:
        self._recorded.calls.clear()
        if self._has_ended:
            self._cuda.release(0, self.pool)
