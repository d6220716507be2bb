"""The engine against diffusers' own pipeline, which runs eagerly, at equal batch."""

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.random_models import RandomModel

BATCH_SIZES = (8, 4, 1)


def figures(bench: Bench, family: str) -> Figures:
    """Images per second, of denoising alone."""
    steps = bench.settings.num_inference_steps
    model = RandomModel.build(bench.sized(family), bench.device, bench.dtype)
    pipeline, run_step = model.pipeline(), model.step_runner()
    for batch_size in BATCH_SIZES:

        def engine(steps: int = steps, batch_size: int = batch_size) -> None:
            requests = [model.request(str(seed), seed, steps) for seed in range(batch_size)]
            model.denoise(requests, run_step, max_rows=2 * batch_size)

        def eager(steps: int = steps, batch_size: int = batch_size) -> None:
            model.run_pipeline(pipeline, batch_size, steps)

        for warm_up in (engine, eager):
            warm_up(2)
        seconds = bench.in_turns({"engine": engine, "pipeline": eager})
        yield (
            f"{batch_size} images",
            {
                "engine_images_per_s": batch_size / seconds["engine"],
                "pipeline_images_per_s": batch_size / seconds["pipeline"],
                "times_the_pipeline": seconds["pipeline"] / seconds["engine"],
            },
        )
