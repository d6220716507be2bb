"""VAE decoding alone and beside a denoiser, in another process and in this one, and what both lose by it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from threading import Thread

import torch

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.worker import end_with_parent
from benchmarks.random_models import U_NETS, RandomModel, build_vae

BATCH_SIZES = (8, 4, 1)
_ROWS, _STEPS = 8, 50  # of the denoiser
_WARM_UP_STEPS = 3
_SPAWN = get_context("spawn")


class Progress:
    """A denoiser's steps, which any thread and process can follow."""

    def __init__(self) -> None:
        self._steps = _SPAWN.Array("d", 2)  # how many, and when the last one ended, by time.perf_counter
        self._stop = _SPAWN.Event()

    def step(self) -> None:
        with self._steps.get_lock():
            self._steps[:] = [self._steps[0] + 1, time.perf_counter()]

    def read(self) -> tuple[float, float]:
        with self._steps.get_lock():
            number, ended_at = self._steps[:]
        return number, ended_at

    def stop(self) -> None:
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set()


def denoise(progress: Progress, model: RandomModel) -> None:
    """Denoises until it is told to stop. On CUDA each step is launched before the one before it has ended."""
    engine, names = model.engine(_ROWS), count()
    while not progress.is_stopped:
        while engine.num_requests < _ROWS // 2:
            engine.add(model.request(str(next(names)), 7, _STEPS))
        if engine.step().forward is not None:
            progress.step()


def _denoise_elsewhere(progress: Progress, family: str, device: torch.device, dtype: torch.dtype) -> None:
    end_with_parent()
    denoise(progress, RandomModel.build(family, device, dtype))


class Decoder:
    """A VAE on a stream of its own, with random latents [size, 4, side, side] by batch size."""

    def __init__(self, bench: Bench, family: str) -> None:
        self._window_s = bench.window_s
        self._vae = build_vae(family, bench.device, bench.dtype)
        self._stream = torch.cuda.Stream(bench.device) if bench.is_cuda else None  # type: ignore[no-untyped-call]
        side = U_NETS[family]["sample_size"]
        self._latents = {
            size: torch.randn(size, 4, side, side, device=bench.device, dtype=bench.dtype)
            for size in BATCH_SIZES
        }
        bench.synchronize()

    @torch.inference_mode()
    def decode(self, size: int) -> None:
        """Waits for this decoder's stream alone."""
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            self._vae.decode(self._latents[size], return_dict=False)
        if self._stream is not None:
            self._stream.synchronize()

    def seconds(self, size: int) -> float:
        """The mean of the calls in a window of time."""
        self.decode(size)
        started, calls = time.perf_counter(), 0
        while time.perf_counter() - started < self._window_s:
            self.decode(size)
            calls += 1
        return (time.perf_counter() - started) / calls


def figures(bench: Bench, family: str) -> Figures:
    family = bench.sized(family)
    decoder = Decoder(bench, family)
    alone = {}
    for size in BATCH_SIZES:
        bench.forget_peak_memory()
        alone[size] = decoder.seconds(size)
        yield f"alone, {size} images", {"seconds": alone[size]} | bench.peak_memory()

    progress = Progress()
    arguments = (progress, family, bench.device, bench.dtype)
    process = _SPAWN.Process(target=_denoise_elsewhere, args=arguments)
    yield from _beside("beside another process", process, progress, bench, decoder, alone)

    progress = Progress()
    thread = Thread(target=denoise, args=(progress, RandomModel.build(family, bench.device, bench.dtype)))
    yield from _beside("in one process", thread, progress, bench, decoder, alone)


def _beside(
    name: str,
    denoiser: BaseProcess | Thread,
    progress: Progress,
    bench: Bench,
    decoder: Decoder,
    alone: dict[int, float],
) -> Figures:
    """alone: seconds by batch size"""
    with _running(denoiser, progress):
        before = progress.read()
        time.sleep(bench.window_s)
        undisturbed = _steps_per_s(before, progress.read())
        yield f"{name}, no images", {"steps_per_s": undisturbed}
        for size in BATCH_SIZES:
            before = progress.read()
            seconds = decoder.seconds(size)
            disturbed = _steps_per_s(before, progress.read())
            yield (
                f"{name}, {size} images",
                {
                    "seconds": seconds,
                    "times_alone": seconds / alone[size],
                    "steps_per_s": disturbed,
                    "share_of_steps_lost": 1 - disturbed / undisturbed if undisturbed else None,
                },
            )


@contextmanager
def _running(denoiser: BaseProcess | Thread, progress: Progress) -> Iterator[None]:
    """Waits until the denoiser is at work, and ends it afterwards."""
    denoiser.start()
    try:
        while progress.read()[0] < _WARM_UP_STEPS:
            if not denoiser.is_alive():
                raise RuntimeError("the denoiser beside has ended; its error is in the output")
            time.sleep(0.01)
        yield
    finally:
        progress.stop()
        denoiser.join()


def _steps_per_s(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Between the ends of two steps; 0 if none has ended meanwhile."""
    steps, seconds = after[0] - before[0], after[1] - before[1]
    return steps / seconds if steps else 0.0
