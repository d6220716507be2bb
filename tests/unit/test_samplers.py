"""Every sampler's table against the diffusers scheduler from which it was compiled."""

import copy
import inspect

import diffusers
import pytest
import torch

from deployments.engine.sampler_compiler import compile_table
from deployments.engine.sampler_names import ALIASES, NEAREST
from deployments.engine.sampler_table import STATE_SLOTS, advance
from deployments.engine.samplers import SAMPLERS, SamplerTables, UnsupportedSamplerError, canonical_sampler

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
SHAPE = (4, 6, 5)
STEP_COUNTS = (1, 2, 3, 8, 21)


def model(latents: torch.Tensor, timestep: float, seed: int) -> torch.Tensor:
    """A smooth made-up U-Net, different for every seed."""
    return torch.sin((2 + seed % 3) * latents + timestep / 250) + 0.3 * latents.flip(-1)


def noise_dtype(sampler: str) -> torch.dtype:
    """The SDE samplers draw noise in float32, whatever the latents' dtype."""
    return torch.float32 if "SDE" in sampler else torch.float64


def alone(tables: SamplerTables, sampler: str, num_steps: int, seed: int) -> torch.Tensor:
    """The stock scheduler's result, in float64 if it stays in float64."""
    scheduler = tables.scheduler(sampler)
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma
    arguments = dict(SAMPLERS[sampler].step_kwargs)
    if "generator" in inspect.signature(scheduler.step).parameters:
        arguments["generator"] = generator
    for timestep in scheduler.timesteps:
        output = model(scheduler.scale_model_input(latents, timestep), float(timestep), seed)
        latents = scheduler.step(output, timestep, latents, **arguments).prev_sample.double()
    return latents[0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_all_samplers_in_one_batch_equal_the_schedulers_alone(prediction_type: str) -> None:
    tables = SamplerTables(STABLE_DIFFUSION | {"prediction_type": prediction_type})
    wanted = [(sampler, steps) for sampler in SAMPLERS for steps in STEP_COUNTS]
    requests = []
    for seed, (sampler, steps) in enumerate(wanted):
        table = tables.table(sampler, steps)
        generator = torch.Generator().manual_seed(seed)
        state = torch.zeros(STATE_SLOTS, *SHAPE, dtype=torch.float64)
        state[0] = table.initial_scale * torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)[0]
        requests.append(
            {"seed": seed, "sampler": sampler, "table": table, "rng": generator, "state": state, "call": 0}
        )

    running = list(requests)
    while running:
        calls = [(request["table"], request["call"]) for request in running]
        weights = torch.stack([table.weights[call] for table, call in calls])
        states = torch.stack([request["state"] for request in running])
        outputs, noise = [], []
        for request, (table, call) in zip(running, calls, strict=True):
            model_input = table.input_scales[call] * request["state"][0]
            outputs.append(model(model_input, float(table.timesteps[call]), request["seed"]))
            drawn = torch.zeros(SHAPE, dtype=torch.float64)
            if table.draws_noise[call]:
                dtype = noise_dtype(request["sampler"])
                drawn = torch.randn(1, *SHAPE, generator=request["rng"], dtype=dtype)[0].double()
            noise.append(drawn)
        inputs = torch.cat([states, torch.stack(outputs)[:, None], torch.stack(noise)[:, None]], dim=1)
        for request, state in zip(running, advance(weights, inputs), strict=True):
            request["state"] = state[:STATE_SLOTS]
            request["call"] += 1
        running = [request for request in running if request["call"] < request["table"].num_calls]

    for request, (sampler, steps) in zip(requests, wanted, strict=True):
        expected = alone(tables, sampler, steps, request["seed"])
        error = (request["state"][0] - expected).abs().max() / expected.abs().max()
        # The Euler and DPM++ schedulers compute in float32, whatever their input.
        tolerance = 1e-4 if sampler.startswith(("Euler", "DPM++")) else 1e-10
        assert error < tolerance, f"{sampler} at {steps} steps is off by {error:.1e}"


def test_there_are_eighteen() -> None:
    assert len(SAMPLERS) == 18


def test_second_order_samplers_make_more_calls_than_steps() -> None:
    tables = SamplerTables(STABLE_DIFFUSION)
    assert tables.table("Heun", 20).num_calls == 39
    assert tables.table("KDPM2", 20).num_calls == 39
    assert tables.table("PLMS", 20).num_calls == 21
    assert tables.table("Euler", 20).num_calls == 20


def test_the_estimate_of_the_clean_latents_is_the_schedulers() -> None:
    tables = SamplerTables(STABLE_DIFFUSION | {"prediction_type": "v_prediction"})
    scheduler = tables.scheduler("DDIM")
    scheduler.set_timesteps(10)
    latents, output = torch.randn(
        2, 1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    expected = scheduler.step(output, scheduler.timesteps[4], latents).pred_original_sample
    inputs = torch.zeros(1, STATE_SLOTS + 2, *SHAPE, dtype=torch.float64)
    inputs[:, 0], inputs[:, STATE_SLOTS] = latents, output
    estimate = advance(tables.table("DDIM", 10).weights[4:5], inputs)[:, STATE_SLOTS]
    torch.testing.assert_close(estimate, expected, rtol=1e-6, atol=1e-6)


def test_advancing_does_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(9, STATE_SLOTS + 1, STATE_SLOTS + 2, generator=generator)
    inputs = torch.randn(9, STATE_SLOTS + 2, 4, 7, 5, generator=generator)
    together = advance(weights, inputs)
    for index in range(9):
        assert torch.equal(together[index], advance(weights[index : index + 1], inputs[index : index + 1])[0])


@pytest.mark.parametrize(
    ("meant", "names"),
    [
        ("Euler", ["euler", "k_euler", "K_EULER", "sample_euler", "EulerDiscreteScheduler"]),
        ("Euler a", ["Euler a", "euler-a", "k_euler_a", "K_EULER_ANCESTRAL", "euler_ancestral"]),
        ("DPM++ 2M", ["DPM++_2M", "dpmpp_2m", "k_dpmpp_2m", "sample_dpmpp_2m", "DPMSolverMultistep"]),
        ("DPM++ 2M Karras", ["dpm++ 2m karras", "dpmpp_2m_karras", "dpmpp_2m_k", "KarrasDPM"]),
        ("DPM++ 2M SDE", ["dpmpp_2m_sde", "sample_dpmpp_2m_sde", "dpmpp_2m_sde_gpu"]),
        ("DPM++ 2M SDE Karras", ["DPM++ 2M SDE Karras", "dpmpp_2m_sde_karras"]),
        ("UniPC", ["unipc", "uni_pc", "UniPCMultistepScheduler"]),
        ("UniPC 3", ["uni_pc_bh2"]),
        ("Heun", ["heun", "k_heun", "HeunDiscrete"]),
        ("KDPM2", ["DPM2", "dpm_2", "k_dpm_2", "kdpm_2", "KDPM2DiscreteScheduler"]),
        ("PLMS", ["plms", "PNDM", "PNDMScheduler"]),
        ("DDIM", ["ddim", "DDIMScheduler"]),
        ("LCM", ["lcm", "LCMScheduler"]),
        ("DEIS", ["deis"]),
        ("DDPM", ["ddpm"]),
        ("TCD", ["tcd"]),
    ],
)
def test_samplers_go_by_the_names_people_use(meant: str, names: list[str]) -> None:
    for name in names:
        assert canonical_sampler(name) == meant, name


@pytest.mark.parametrize("scheduler", sorted({spec.scheduler for spec in SAMPLERS.values()}))
def test_a_diffusers_class_means_the_sampler_with_its_own_settings(scheduler: str) -> None:
    """Its table equals the class's, made by diffusers from a Stable Diffusion model's configuration."""
    config = STABLE_DIFFUSION | {"skip_prk_steps": True, "trained_betas": None}
    stock = getattr(diffusers, scheduler).from_config(config)
    stock.set_timesteps(12)
    expected = compile_table(stock, {})
    table = SamplerTables(config).table(scheduler, 12)
    assert torch.equal(table.timesteps, expected.timesteps)
    torch.testing.assert_close(table.weights, expected.weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("K_LMS", "PLMS, DEIS"),
        ("LMSDiscreteScheduler", "PLMS, DEIS"),
        ("DPM++ SDE", "DPM++ 2M SDE, Euler a"),
        ("dpmpp_2s_ancestral", "Euler a, DPM++ 2M SDE"),
        ("DPM2 a", "KDPM2, Euler a"),
        ("Euler Karras", "Euler, DPM++ 2M Karras"),
        ("heun_k", "Heun, DPM++ 2M Karras"),
        ("UniPC exponential", "UniPC"),
    ],
)
def test_another_update_rule_is_refused_with_what_comes_near(name: str, nearest: str) -> None:
    with pytest.raises(UnsupportedSamplerError) as refused:
        canonical_sampler(name)
    assert f"sampler {name!r} is not offered; the nearest: {nearest}; all: DDIM, " in str(refused.value)


def test_what_comes_near_is_offered() -> None:
    assert {name for names in NEAREST.values() for name in names} <= SAMPLERS.keys()
    assert ALIASES.keys() <= SAMPLERS.keys()


def test_eta_is_what_a_stock_scheduler_is_given() -> None:
    """Each table was checked against its scheduler when it was compiled."""
    tables = SamplerTables(STABLE_DIFFUSION)
    assert torch.equal(tables.table("DDIM", 10, eta=1.0).weights, tables.table("DDIM eta 1", 10).weights)
    assert torch.equal(tables.table("DDIM", 10, eta=0.0).weights, tables.table("DDIM", 10).weights)
    half = tables.table("DDIM", 10, eta=0.5)
    assert not torch.equal(half.weights, tables.table("DDIM", 10).weights)
    assert any(half.draws_noise)


def test_an_unknown_sampler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedSamplerError, match=r"'Elephant'.*DDIM.*PLMS"):
        canonical_sampler("Elephant")


def test_a_step_count_that_a_sampler_cannot_have_is_refused() -> None:
    with pytest.raises(UnsupportedSamplerError, match=r"'LCM' at 60 steps: .*; 'LCM' works at 50 steps"):
        SamplerTables(STABLE_DIFFUSION).table("LCM", 60)


@pytest.mark.parametrize(
    ("sampler", "steps", "works"),
    [
        ("DPM++ 2M Karras", 80, ["'DPM++ 2M' works at 80 steps"]),
        ("DPM++ 2M Karras", 21, ["'DPM++ 2M Karras' works at 20 steps", "'DPM++ 2M' works at 21 steps"]),
        ("DDIM eta 1", 21, ["'DDIM eta 1' works at 20 steps", "'DDIM' works at 21 steps"]),
    ],
)
def test_what_a_stock_scheduler_fails_at_is_refused_with_what_works(
    sampler: str, steps: int, works: list[str]
) -> None:
    """Zero terminal SNR with trailing timesteps is a case where diffusers' own samplers fail."""
    tables = SamplerTables(
        STABLE_DIFFUSION
        | {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        }
    )
    with pytest.raises(UnsupportedSamplerError) as refused:
        tables.table(sampler, steps)
    [reason, *others] = str(refused.value).split("; ")
    scheduler = SAMPLERS[sampler].scheduler
    assert reason == (
        f"sampler {sampler!r} at {steps} steps: diffusers' {scheduler} fails with so many on this model's "
        "noise schedule"
    )
    assert others == works


def test_a_scheduler_that_is_not_linear_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic thresholding depends on the latents' size, so no table can replay it."""
    euler = diffusers.EulerDiscreteScheduler

    class Clipping(euler):  # type: ignore[misc, valid-type]
        def step(
            self, model_output: torch.Tensor, timestep: object, sample: torch.Tensor, **kwargs: object
        ) -> object:
            return super().step(model_output, timestep, sample.clamp(-1, 1), **kwargs)

    monkeypatch.setattr(diffusers, "EulerDiscreteScheduler", Clipping)
    with pytest.raises(UnsupportedSamplerError, match=r"'Euler' at 5 steps.*not linear"):
        SamplerTables(copy.deepcopy(STABLE_DIFFUSION)).table("Euler", 5)
