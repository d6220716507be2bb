"""CUDA that runs out of memory, or is lost: what the engine learns of it, and what it does then."""

import queue
import threading

import pytest
import torch

from benchmarks.random_models import RandomModel
from deployments.engine.bank import AdapterBank
from deployments.engine.device_faults import is_device_fault, is_out_of_memory
from deployments.engine.device_step import Completion, EagerSteps, StepRunner
from deployments.engine.engine_thread import EngineThread
from deployments.engine.step_inputs import StepInputs
from tests.conftest import finish
from tests.gpu.processes import elsewhere, forget_building

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")
NUM_IMAGES = 8


def _with_little_memory() -> tuple[int, int]:
    """The finished images, and how often a forward was halved, with memory for a quarter of their rows."""
    model = RandomModel.build("sd15", CUDA, torch.bfloat16)
    forget_building()
    run_step = EagerSteps(model.unet)
    few = model.engine(NUM_IMAGES // 2, run_step)
    for seed in range(NUM_IMAGES // 4):
        few.add(model.request(str(seed), seed, steps=2))
    finish(few)
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.1 * most / torch.cuda.mem_get_info()[1])
    halved: list[None] = []
    engine = model.engine(2 * NUM_IMAGES, run_step, halved=lambda: halved.append(None))
    for seed in range(NUM_IMAGES):
        engine.add(model.request(str(seed), seed, steps=2))
    return len(finish(engine)), len(halved)


def test_forwards_that_do_not_fit_are_halved_and_all_images_finish() -> None:
    num_finished, num_halved = elsewhere(_with_little_memory)  # the limit stays with the process
    assert num_finished == NUM_IMAGES
    assert num_halved


class _LosesTheDevice:
    """Steps of a device, the third of which reads beyond a tensor's end."""

    def __init__(self, steps: StepRunner) -> None:
        self._steps = steps
        self._launches = 0

    @property
    def bank(self) -> AdapterBank:
        return self._steps.bank

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        self._launches += 1
        if self._launches == 3:
            beyond = torch.tensor([1 << 20], device=CUDA)
            torch.zeros(4, device=CUDA)[beyond]
        return self._steps.launch(inputs)

    def completion(self) -> Completion:
        return self._steps.completion()


def _with_a_lost_device() -> tuple[str, bool, bool]:
    """What the engine's thread says, and what a later call's error is taken for: a lost device, no memory."""
    model = RandomModel.build("sd15", CUDA, torch.bfloat16)
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    is_done = threading.Event()
    thread = EngineThread(
        lambda: model.engine(4, _LosesTheDevice(EagerSteps(model.unet))),
        lambda report: is_done.set() if report.events else None,
        reasons.put,
    )
    thread.start()
    thread.add([(model.request("image", 7, steps=8), ())])
    reason = reasons.get(timeout=60)
    assert not is_done.is_set(), "somebody was told before the process ends"
    try:
        torch.zeros(4, device=CUDA).sum().item()
    except Exception as error:
        return reason, is_device_fault(error), is_out_of_memory(error)
    return reason, False, False


def test_a_lost_device_ends_the_engine_before_anybody_is_told() -> None:
    reason, is_lost, is_memory = elsewhere(_with_a_lost_device)  # such a process is of no more use
    assert reason
    assert is_lost
    assert not is_memory
