"""A1111's txt2img and img2img, over HTTP but without Ray: what becomes of fields, and what is answered."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from deployments.engine.messages import Picture
from serve.generation import GenerationRequest
from tests.job_stores import in_loop
from tests.picture_files import data_url, file_of, picture, right_half
from tests.unit.test_authentication import IMAGES, serving

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
# What clients send that send every field, with its default.
WHOLE: dict[str, Any] = {
    "prompt": "a red star",
    "styles": [],
    "seed": 5,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": -1,
    "sampler_name": "Euler a",
    "sampler_index": "Euler a",
    "scheduler": "automatic",
    "batch_size": 1,
    "n_iter": 1,
    "steps": 20,
    "cfg_scale": 7.0,
    "width": 128,
    "height": 64,
    "restore_faces": False,
    "tiling": None,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_min_uncond": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "refiner_checkpoint": None,
    "refiner_switch_at": 0.8,
    "disable_extra_networks": False,
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {"ControlNet": {"args": []}, "ADetailer": {"args": [False]}},
    "comments": {},
    "force_task_id": "abc",
    "infotext": None,
}
OF_TXT2IMG: dict[str, Any] = {
    "enable_hr": False,
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2,
    "hr_upscaler": "R-ESRGAN 4x+",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
}
START = file_of(picture(128, 64))
MASK = file_of(right_half((128, 64)))
OF_IMG2IMG: dict[str, Any] = {
    "init_images": [data_url(START)],
    "resize_mode": 0,
    "denoising_strength": 0.75,
    "image_cfg_scale": 1.5,
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "include_init_images": False,
}
Seen = list[tuple[GenerationRequest, Picture | None]]


async def made(client: httpx.AsyncClient, path: str = TXT2IMG, **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[int, str, str]:
    answer = await client.post(path, json=body)
    problem = answer.json()
    return answer.status_code, problem["error"]["param"], problem["detail"]


@in_loop
async def test_a_whole_body_asks_for_the_same_as_the_other_dialects(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        answer = await made(client, **WHOLE, **OF_TXT2IMG)
        assert "warnings" not in answer
        native = {
            "prompt": "a red star",
            "seed": 5,
            "sampler": "Euler a",
            "num_inference_steps": 20,
            "guidance_scale": 7.0,
            "size": "128x64",
            "prompt_syntax": "a1111",
            "long_prompts": "chunk",
        }
        (await client.post(IMAGES, json=native)).raise_for_status()
    (request, _), (same, _) = seen
    assert request.num_previews == 8
    assert replace(request, request_id="", num_previews=0) == replace(same, request_id="")


@in_loop
async def test_a_prompt_alone_is_made_as_the_model_makes_it(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        answer = await made(client, prompt="a (red:1.3) star", width=None, unknown=None)
        assert "warnings" not in answer
        parameters = answer["parameters"]
        assert (parameters["prompt"], parameters["seed"]) == ("a (red:1.3) star", -1)
        assert (parameters["steps"], parameters["cfg_scale"], parameters["width"]) == (20, 5.0, 128)
        assert (await made(client))["images"], "an empty prompt is one, too"
    [(request, _), _] = seen
    assert (request.sampler, request.num_images, request.reading.syntax) == ("DPM++ 2M", 1, "a1111")


@in_loop
async def test_the_answer_is_as_a1111_has_it(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        body = WHOLE | {"batch_size": 2, "n_iter": 2, "negative_prompt": "blue", "seed": "5", "steps": 8.0}
        answer = await made(client, **body)
        assert answer["images"] == 4 * ["aW1hZ2U="], "each in bare base64"
        info = json.loads(answer["info"])
        assert (info["seed"], info["all_seeds"]) == (5, [5, 6, 7, 8])
        assert info["all_prompts"] == 4 * ["a red star"]
        assert info["all_negative_prompts"] == 4 * ["blue"]
        assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (128, 64, 8, 7.0)
        assert (info["sampler_name"], info["batch_size"], info["sd_model_name"]) == ("Euler a", 2, "shapes")
        assert (info["denoising_strength"], info["clip_skip"], info["index_of_first_image"]) == (None, 1, 0)
        assert len(info["infotexts"]) == 4
        assert info["infotexts"][1].startswith(
            "a red star\nNegative prompt: blue\n"
            "Steps: 8, Sampler: Euler a, CFG scale: 7, Seed: 6, Size: 128x64, "
        )
        assert "interrupted" not in info
        none = await made(client, **(WHOLE | {"send_images": False}))
        assert (none["images"], json.loads(none["info"])["seed"]) == ([], 5)


@in_loop
async def test_options_hold_for_one_request(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        settings = {
            "sd_model_checkpoint": "shapes [0123456789]",
            "CLIP_stop_at_last_layers": 2,
            "samples_format": "jpg",
            "jpeg_quality": 70,
            "live_previews_enable": False,
            "sd_vae": "Automatic",
            "eta_noise_seed_delta": 0,
        }
        answer = await made(client, prompt="a star", override_settings=settings)
        assert "warnings" not in answer
        assert answer["parameters"]["override_settings"] == settings
        assert json.loads(answer["info"])["clip_skip"] == 2
        await made(client, prompt="a star")
    (request, _), (after, _) = seen
    assert (request.reading.clip_skip, after.reading.clip_skip) == (1, None)
    assert (request.image_format.media_type, request.image_format.quality) == ("image/jpeg", 70)
    assert (after.image_format.media_type, after.image_format.quality) == ("image/png", None)
    assert (request.num_previews, after.num_previews) == (0, 8)


@in_loop
async def test_what_is_not_known_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        body = {
            "prompt": "a star",
            "sampler": "Euler",
            "clip_skip": 2,
            "save_images": True,
            "override_settings": {"jpeg_qualty": 5, "CLIP_stop_at_last_layers": 1},
            "override_settings_restore_afterwards": False,
        }
        assert (await made(client, **body))["warnings"] == [
            "save_images: True changes nothing; pictures are only in the answer.",
            "override_settings_restore_afterwards: False changes nothing; settings of a request hold for it "
            "alone; POST /sdapi/v1/options sets them for all.",
            "sampler: is not known here and changes nothing; the nearest one is 'sampler_name'.",
            "clip_skip: is not known here and changes nothing.",
            "override_settings.jpeg_qualty: is not known here and changes nothing; the nearest one is "
            "'jpeg_quality'.",
        ]
        many = await made(client, prompt="a star", **{f"field{index}": 1 for index in range(12)})
        assert len(many["warnings"]) == 11
        assert many["warnings"][-1] == "2 fields more are not known here and change nothing."


@in_loop
async def test_what_a1111s_own_tests_ask_for_is_made(tmp_path: Path) -> None:
    """As far as it is offered: not tiles, restored faces, alternating words and scripts."""
    small = WHOLE | {"width": 64, "height": 64, "steps": 3, "seed": -1, "eta": 0, "sampler_name": None}
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        for changes, num_images in (
            ({}, 1),
            ({"negative_prompt": "something else"}, 1),
            ({"prompt": "((more)), (more:1.1), [less], [to:x]"}, 1),
            ({"height": 128}, 1),
            ({"enable_hr": True, "hr_upscaler": None, "denoising_strength": 0}, 1),
            ({"sampler_index": "PLMS"}, 1),
            ({"sampler_index": "DDIM"}, 1),
            ({"sampler_index": "UniPC"}, 1),
            ({"n_iter": 2}, 2),
            ({"batch_size": 2}, 2),
        ):
            answer = await made(client, **(small | changes))
            assert len(answer["images"]) == num_images, changes
        image = {"init_images": [data_url(START)], "inpaint_full_res": False, "inpainting_mask_invert": False}
        for changes in (
            {},
            {"mask": data_url(MASK)},
            {"mask": data_url(MASK), "inpainting_mask_invert": True},
        ):
            assert len((await made(client, IMG2IMG, **(small | OF_IMG2IMG | image | changes)))["images"]) == 1
    assert [request.sampler for request, _ in seen[5:8]] == ["PLMS", "DDIM", "UniPC"]
    assert seen[0][0].sampler == "Euler", "which is Euler a without fresh noise"


@in_loop
async def test_values_that_json_does_not_have_are_not_sent_back(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        body = (
            '{"prompt": "a", "x": NaN, "comments": {"y": -Infinity}, "override_settings": {"z": NaN}, '
            '"alwayson_scripts": {"a": {"args": [false, Infinity]}}}'
        )
        answer = await client.post(TXT2IMG, content=body)
        assert answer.status_code == 200
        parameters = answer.json()["parameters"]
        assert (parameters["x"], parameters["comments"], parameters["override_settings"]) == (
            None,
            {"y": None},
            {},
        )


UNIT = {"enabled": True, "module": "canny", "image": "x"}
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (TXT2IMG, {"restore_faces": True}, "restore_faces", "faces are not restored"),
    (TXT2IMG, {"tiling": True}, "tiling", "tile"),
    (TXT2IMG, {"script_name": "x/y/z plot"}, "script_name", "not offered"),
    (TXT2IMG, {"subseed_strength": 0.3}, "subseed_strength", "variations"),
    (TXT2IMG, {"refiner_checkpoint": "sdxl"}, "refiner_checkpoint", "refiner"),
    (TXT2IMG, {"styles": ["anime"]}, "styles", "no styles"),
    (TXT2IMG, {"s_churn": 5}, "s_churn", "as in diffusers"),
    (TXT2IMG, {"alwayson_scripts": {"ControlNet": {"args": [UNIT]}}}, "alwayson_scripts.ControlNet", "not"),
    (TXT2IMG, {"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}}, "alwayson_scripts.ADetailer", "not"),
    (TXT2IMG, {"batch_size": 3, "n_iter": 4}, "batch_size x n_iter", "12 were given; at most 10"),
    (TXT2IMG, {"n_iter": 11}, "n_iter", "11 were given"),
    (TXT2IMG, {"steps": 0}, "steps", "greater than or equal to 1"),
    (TXT2IMG, {"steps": "many"}, "steps", "valid integer"),
    (TXT2IMG, {"width": 100}, "width", "multiples of 8"),
    (TXT2IMG, {"seed": -2}, "seed", "greater than or equal to -1"),
    (TXT2IMG, {"sampler_name": "DPM fast"}, "sampler_name", "the nearest: DPM++ 2M"),
    (TXT2IMG, {"sampler_index": "x"}, "sampler_index", "unknown sampler"),
    (TXT2IMG, {"scheduler": "Exponential"}, "scheduler", "Automatic, Uniform, Karras are"),
    (TXT2IMG, {"prompt": "[a|b]"}, "prompt", "take turns"),
    (TXT2IMG, {"prompt": "a <lora:x:1>"}, "prompt", "not offered"),
    (TXT2IMG, {"init_images": ["x"]}, "init_images", "img2img"),
    (TXT2IMG, {"override_settings": {"sd_vae": "x"}}, "override_settings.sd_vae", "VAE"),
    (
        TXT2IMG,
        {"override_settings": {"CLIP_stop_at_last_layers": 12}},
        "override_settings.CLIP_stop_at_last_layers",
        "12 was given; at most",
    ),
    (TXT2IMG, {"enable_hr": True, "hr_upscaler": "ESRGAN"}, "hr_upscaler", "Latent, Latent (bicubic)"),
    (TXT2IMG, {"enable_hr": True, "hr_scale": 5}, "hr_scale", "up to 4"),
    (TXT2IMG, {"enable_hr": True, "hr_scale": 1}, "hr_scale", "more than 1"),
    (TXT2IMG, {"enable_hr": True, "hr_resize_x": 256, "hr_resize_y": 128}, "hr_resize_x", "grow alike"),
    (TXT2IMG, {"enable_hr": True, "hr_prompt": "else"}, "hr_prompt", "of the first"),
    (TXT2IMG, {"enable_hr": True, "hr_sampler_name": "Heun"}, "hr_sampler_name", "of the first"),
    (TXT2IMG, {"enable_hr": True, "hr_scheduler": "Exponential"}, "hr_scheduler", "is not offered"),
    (TXT2IMG, {"enable_hr": True, "hr_scale": 3}, "enable_hr", "multiples of 8 from 64 to 256"),
    (IMG2IMG, {"init_images": None}, "init_images", "0 pictures"),
    (IMG2IMG, {"init_images": 2 * [data_url(START)]}, "init_images", "2 pictures"),
    (IMG2IMG, {"init_images": ["eA=="]}, "init_images", "no PNG, JPEG or WebP"),
    (IMG2IMG, {"init_images": ["#"]}, "init_images", "not base64"),
    (IMG2IMG, {"resize_mode": 1}, "resize_mode", "only resized"),
    (IMG2IMG, {"mask": data_url(MASK), "inpainting_fill": 2}, "inpainting_fill", "latent noise"),
    (
        IMG2IMG,
        {"mask": data_url(MASK), "mask_blur_x": 2, "mask_blur_y": 9},
        "mask_blur_x",
        "9 as mask_blur_y",
    ),
    (IMG2IMG, {"mask": data_url(file_of(right_half((64, 64))))}, "mask", "64x64 pixels"),
    (IMG2IMG, {"mask": data_url(file_of(right_half((128, 64), right=0)))}, "mask", "nothing of it is white"),
    (IMG2IMG, {"enable_hr": True}, "enable_hr", "only txt2img"),
]


@in_loop
async def test_what_would_change_the_picture_and_is_not_offered_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        for path, fields, field, part in REFUSED:
            body = {"prompt": "a star", **({} if path == TXT2IMG else {"init_images": [data_url(START)]})}
            status, param, detail = await refused(client, path, body | fields)
            assert (status, param) == (422, field), f"{fields}: {detail}"
            assert part in detail, detail
            assert detail.startswith(f"{field}: ")
        for name in ("sdxl", "sdxl.safetensors [abc]"):
            body = {"prompt": "a star", "override_settings": {"sd_model_checkpoint": name}}
            status, param, detail = await refused(client, TXT2IMG, body)
            assert (status, param) == (404, "override_settings.sd_model_checkpoint")
            assert detail.endswith("is not served here; 'shapes' is.")


@in_loop
async def test_a_second_pass_has_the_noise_levels_of_the_first(tmp_path: Path) -> None:
    seen: Seen = []
    of_both = {"sampler_name": "DPM++ 2M", "scheduler": "Karras", "hr_sampler_name": "DPM++ 2M"}
    async with serving(tmp_path, [], seen=seen) as client:
        for name in (None, "Use same scheduler", "karras"):
            await made(client, width=64, height=64, enable_hr=True, hr_scheduler=name, **of_both)
    assert {request.sampler for request, _ in seen} == {"DPM++ 2M Karras"}


@in_loop
async def test_a_second_pass(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        whole = WHOLE | OF_TXT2IMG | {"enable_hr": True, "width": 64, "hr_upscaler": "Latent"}
        [warning] = (await made(client, **whole))["warnings"]
        assert warning.startswith("hr_upscaler: 'Latent' enlarges by bicubic interpolation")
        more = {"hr_upscaler": "None", "hr_resize_x": 96, "hr_second_pass_steps": 10, "denoising_strength": 0}
        await made(
            client, **(whole | more | {"hr_sampler_name": "Use same sampler", "hr_prompt": "a red star"})
        )
    (first, _), (second, _) = seen
    assert first.hires is not None
    assert second.hires is not None
    hires = first.hires
    assert (hires.upscaler, hires.height, hires.width, hires.strength) == ("latent", 128, 128, 0.7)
    assert hires.num_inference_steps == 20
    hires = second.hires
    assert (hires.upscaler, hires.height, hires.width) == ("lanczos", 96, 96)
    assert (hires.num_inference_steps, hires.num_calls) == (10, 1), "A1111 always does one step"


@in_loop
async def test_a_picture_to_start_from(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        answer = await made(client, IMG2IMG, **(WHOLE | OF_IMG2IMG))
        assert "warnings" not in answer
        assert answer["parameters"]["init_images"] is None
        assert json.loads(answer["info"])["denoising_strength"] == 0.75
        bare = data_url(START).partition(",")[2]
        body = WHOLE | OF_IMG2IMG | {"init_images": [bare], "include_init_images": True}
        assert (await made(client, IMG2IMG, **body))["parameters"]["init_images"] == [bare]
        await made(client, IMG2IMG, prompt="a star", init_images=[bare], denoising_strength=0, steps=49)
    (first, start), (second, same), (third, _) = seen
    assert start is not None
    assert same is not None
    assert np.array_equal(start.pixels, same.pixels)
    assert start.pixels.shape == (64, 128, 3)
    assert (first.strength, first.num_steps, second.num_steps) == (0.75, 15, 15)
    assert (third.num_steps, third.width, third.height) == (1, 128, 64)


@in_loop
async def test_masks_are_softened_inverted_and_filled(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        body = WHOLE | OF_IMG2IMG | {"mask": data_url(MASK)}
        await made(client, IMG2IMG, **body)
        whole = {"inpaint_full_res": False, "inpainting_fill": 1, "mask_blur": 0}
        await made(client, IMG2IMG, **(body | whole))
        answer = await made(client, IMG2IMG, **(body | whole | {"inpainting_mask_invert": True}))
        [infotext] = json.loads(answer["info"])["infotexts"]
        assert "Denoising strength: 0.75, Mask mode: Inpaint not masked, Version" in infotext
        answer = await made(client, IMG2IMG, **(body | {"inpaint_full_res_padding": 8}))
        [infotext] = json.loads(answer["info"])["infotexts"]
        assert (
            "Mask blur: 4, Masked content: fill, Inpaint area: Only masked, Masked area padding: 8"
            in infotext
        )
    (first, softened), (second, hard), (third, inverted), _ = seen
    assert softened is not None
    assert hard is not None
    assert inverted is not None
    assert first.start is not None
    assert second.start is not None
    assert third.start is not None
    assert softened.crop == (0, 0, 128, 64), "in the shape of the size that is asked for"
    assert first.start.preserve_unmasked
    edge = softened.pixels[32, :, 3]
    assert edge[50] == 0
    assert 0 < edge[60] < 128 < edge[68] < 255
    assert edge[80] == 255
    assert hard.crop is None
    assert set(hard.pixels[32, :, 3]) == {0, 255}
    assert hard.pixels[32, 100, 3] == 255
    assert inverted.pixels[32, 100, 3] == 0
    assert np.array_equal(hard.pixels[:, :, :3], inverted.pixels[:, :, :3]), "the original is under the mask"
    filled = softened.pixels[:, 80:, :3]
    assert np.abs(filled.astype(int) - hard.pixels[:, 80:, :3]).mean() > 50, "and here the colours around it"
    assert third.start.black_is_repainted
