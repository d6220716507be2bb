"""webuiapi, a client of A1111's dialect."""

import threading
import time
from typing import Any

import pytest
from pictures import PROMPT, SIZE
from PIL import Image, ImageDraw
from webuiapi import ControlNetUnit, HiResUpscaler, WebUIApi

_FAST = {"prompt": PROMPT, "width": 128, "height": 128, "steps": 4, "seed": 5}
_LONG = {**_FAST, "steps": 100, "batch_size": 8}


@pytest.fixture
def api(url: str) -> WebUIApi:
    return WebUIApi(baseurl=f"{url}/sdapi/v1")


def red(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("RGB", size, "red")


def right_half(size: tuple[int, int] = SIZE) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((size[0] // 2, 0, *size), fill=255)
    return mask


def test_txt2img(api: WebUIApi) -> None:
    made = api.txt2img(**_FAST, cfg_scale=7, sampler_name="DPM++ 2M", scheduler="Karras")
    assert made.image.size == SIZE
    assert (made.info["seed"], made.info["all_seeds"]) == (5, [5])
    assert made.info["sampler_name"] == "DPM++ 2M Karras"
    assert made.parameters["steps"] == 4
    assert made.image.info["parameters"] == made.info["infotexts"][0]


def test_several_images(api: WebUIApi) -> None:
    made = api.txt2img(**_FAST, batch_size=2, n_iter=2)
    assert len(made.images) == 4
    assert made.info["all_seeds"] == [5, 6, 7, 8]
    assert len({one.tobytes() for one in made.images}) == 4


def test_a_random_seed_is_told(api: WebUIApi) -> None:
    made = api.txt2img(prompt=PROMPT, width=128, height=128, steps=2)
    again = api.txt2img(prompt=PROMPT, width=128, height=128, steps=2, seed=made.info["seed"])
    assert again.info["seed"] == made.info["seed"] >= 0


@pytest.mark.parametrize("upscaler", [HiResUpscaler.Latent, HiResUpscaler.Lanczos, HiResUpscaler.none])
def test_a_second_pass(api: WebUIApi, upscaler: HiResUpscaler) -> None:
    made = api.txt2img(**_FAST, enable_hr=True, hr_scale=1.5, hr_upscaler=upscaler, denoising_strength=0.6)
    assert made.image.size == (192, 192)
    assert "Hires upscale: 1.5" in made.info["infotexts"][0]


def test_img2img(api: WebUIApi) -> None:
    made = api.img2img(images=[red()], **_FAST, denoising_strength=0.5)
    assert made.image.size == SIZE
    assert made.info["denoising_strength"] == 0.5
    assert made.parameters["init_images"] is None


@pytest.mark.parametrize(
    "given",
    [
        {},  # its defaults: only what is masked, filled, blurred by 4
        {"inpainting_fill": 1, "mask_blur": 0, "inpaint_full_res": False},
        {"inpainting_mask_invert": 1, "inpaint_full_res_padding": 32},
    ],
    ids=str,
)
def test_a_mask(api: WebUIApi, given: dict[str, Any]) -> None:
    made = api.img2img(images=[red()], mask_image=right_half(), **_FAST, denoising_strength=0.9, **given)
    assert made.image.size == SIZE
    kept = (96, 0, 128, 128) if given.get("inpainting_mask_invert") else (0, 0, 32, 128)
    assert made.image.convert("RGB").crop(kept).getextrema() == ((255, 255), (0, 0), (0, 0))
    assert made.image.convert("RGB").tobytes() != red().tobytes()


def in_background(api: WebUIApi) -> tuple[threading.Thread, list[Any]]:
    """A long request, under way."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(api.txt2img(**_LONG)))
    thread.start()
    deadline = time.monotonic() + 60
    while api.get_progress()["state"]["job_count"] == 0:
        assert time.monotonic() < deadline, "it never began"
        assert thread.is_alive()
        time.sleep(0.02)
    return thread, results


def test_progress_and_interrupt(api: WebUIApi) -> None:
    api.util_wait_for_ready(check_interval=0.5)
    thread, results = in_background(api)
    while (shown := api.get_progress())["current_image"] is None:
        assert thread.is_alive()
        time.sleep(0.05)
    assert 0 < shown["progress"] < 1
    assert shown["state"]["sampling_steps"] == 100
    api.interrupt()
    thread.join(60)
    [result] = results
    assert result.info["interrupted"]
    assert all(one.size == SIZE for one in result.images)
    assert len(result.images) <= 8
    api.util_wait_for_ready(check_interval=0.1)
    assert api.get_progress()["state"]["interrupted"]


def test_skip(api: WebUIApi) -> None:
    thread, results = in_background(api)
    api.skip()
    thread.join(60)
    assert results[0].info["interrupted"]


def test_options(api: WebUIApi) -> None:
    options = api.get_options()
    assert options["sd_model_checkpoint"] == api.util_get_current_model()
    try:
        api.set_options({"samples_format": "webp", "CLIP_stop_at_last_layers": 2})
        made = api.txt2img(**_FAST)
        assert (made.image.format, made.info["clip_skip"]) == ("WEBP", 2)
        one = api.txt2img(**_FAST, override_settings={"samples_format": "jpg"})
        assert one.image.format == "JPEG"
    finally:
        api.set_options({name: options[name] for name in ("samples_format", "CLIP_stop_at_last_layers")})
    assert api.get_options() == options


def test_models(api: WebUIApi) -> None:
    names = api.util_get_model_names()
    assert {"shapes", "outlines"} <= set(names)
    api.refresh_checkpoints()
    before = api.util_get_current_model()
    try:
        api.util_set_model("Outline")  # it takes the nearest
        assert api.util_get_current_model() == "outlines"
        assert api.txt2img(**_FAST).info["sd_model_name"] == "outlines"
        own = {"sd_model_checkpoint": "shapes"}
        assert api.txt2img(**_FAST, override_settings=own).info["sd_model_name"] == "shapes"
    finally:
        api.util_set_model(before, find_closest=False)
    assert api.util_get_current_model() == before


def test_lists(api: WebUIApi) -> None:
    assert {"Euler a", "DPM++ 2M", "DPM++ 2M Karras"} <= set(api.util_get_sampler_names())
    assert api.util_get_scheduler_names() == ["automatic", "karras", "uniform"]
    assert [one["name"] for one in api.get_upscalers()] == ["Lanczos", "None"]
    assert api.get_latent_upscale_modes()[0] == {"name": "Latent"}
    assert "lcm" in {one["name"] for one in api.get_loras()}
    assert api.get_embeddings().keys() == {"loaded", "skipped"}
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_cmd_flags()["api"]
    assert api.get_memory()["ram"]["total"] > 0
    for listed in (
        api.get_sd_vae(),
        api.get_hypernetworks(),
        api.get_face_restorers(),
        api.get_realesrgan_models(),
        api.get_prompt_styles(),
    ):
        assert listed == []


def test_an_adapter(api: WebUIApi) -> None:
    made = api.txt2img(**{**_FAST, "prompt": f"{PROMPT} <lora:lcm:1>", "sampler_name": "LCM", "cfg_scale": 1})
    assert "<lora:lcm:1>" in made.info["infotexts"][0]


def test_png_info(api: WebUIApi) -> None:
    made = api.txt2img(**_FAST, negative_prompt="blue")
    read = api.png_info(made.image)
    assert read.info == made.info["infotexts"][0]
    assert (read.parameters["Prompt"], read.parameters["Negative prompt"]) == (PROMPT, "blue")
    assert (read.parameters["Seed"], read.parameters["Size"]) == ("5", "128x128")


def test_what_cannot_be_done_is_refused(api: WebUIApi) -> None:
    for given, sentence in (
        ({"restore_faces": True}, "restore_faces: True was given"),
        ({"controlnet_units": [ControlNetUnit(module="canny")]}, "alwayson_scripts.ControlNet: "),
        ({"width": 4096}, "width: a width of 4096"),
        ({"override_settings": {"sd_model_checkpoint": "sdxl"}}, "'sdxl' is not served here"),
    ):
        with pytest.raises(RuntimeError) as raised:
            api.txt2img(**{**_FAST, "alwayson_scripts": {}, **given})
        status, text = raised.value.args
        assert status in (404, 422)
        assert sentence in text
