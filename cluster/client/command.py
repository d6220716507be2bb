"""`midstep generate PROMPT` and `midstep jobs submit|get|wait|cancel|delete|list`.

httpx and rich are imported only when a server is asked, so that help appears at once.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import wraps
from itertools import count
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from cluster.api_key import KEY_HELP, api_key
from cluster.bench.option_values import HEADER_VALUE, URL, WRITABLE_FILE
from cluster.client.pictures import PICTURE, input_of

if TYPE_CHECKING:
    from cluster.client.predictions import Predictions

# The input fields of a prediction that have an option, by the server's names.
_INPUT: dict[str, tuple[type, str]] = {
    "negative_prompt": (str, "What the image should not show."),
    "width": (int, "Pixels."),
    "height": (int, "Pixels."),
    "num_outputs": (int, "How many images; their seeds are seed, seed + 1, ..."),
    "num_inference_steps": (int, "Denoising steps."),
    "guidance_scale": (float, "Classifier-free guidance."),
    "guidance_start": (float, "Where guidance starts, as a fraction of the steps."),
    "guidance_end": (float, "Where guidance ends; each step after it costs half."),
    "guidance_rescale": (
        float,
        "Against overexposure by guidance, 0 to 1; 0.7 for models with v-prediction.",
    ),
    "prompt_syntax": (str, "plain, or a1111 for weights like (word:1.3)."),
    "long_prompts": (str, "truncate, or chunk to read more than 75 tokens."),
    "clip_skip": (int, "Last layers of the text encoder that are left out."),
    "scheduler": (str, 'The sampler, such as "DPM++ 2M Karras".'),
    "seed": (int, "The same seed gives the same image."),
    "output_format": (str, "png, webp or jpeg."),
    "priority": (int, "-2 to 2."),
    "prompt_strength": (float, "How much of the picture is replaced, above 0 and up to 1."),
    "padding_mask_crop": (int, "Denoise only what is around the mask, with this many pixels of padding."),
}
_SHORT = {
    "num_inference_steps": ("--steps",),
    "scheduler": ("--sampler",),
    "prompt_strength": ("--strength",),
}
_FLAGS = {
    "deterministic": "The same bytes every time.",
    "preserve_unmasked": "Keep the picture's own pixels where nothing is repainted.",
}
_PICTURES = {
    "image": "A picture to start from.",
    "mask": "A mask of the picture's size: white where it is repainted.",
}
# The fields of the input `hires`, by their options.
_HIRES: dict[str, tuple[str, type, str]] = {
    "hires": ("scale", float, "Make each image this many times as large, in a second pass."),
    "hires_upscaler": ("upscaler", str, "What is enlarged: latent or lanczos (the image)."),
    "hires_strength": ("strength", float, "How much of the image the second pass replaces."),
    "hires_steps": ("num_inference_steps", int, "Denoising steps of the second pass."),
}
_MAX_NAME_LENGTH = 60  # limit of a file name made from a prompt
_OUTPUT = click.option("-o", "--output", type=WRITABLE_FILE, help="Image file; several images are numbered.")
Command = Callable[..., int]


def _asking(command: Command) -> Command:
    """Adds the options of every command that asks a server. Passes the server's predictions to `command`."""

    @wraps(command)
    def asking(url: str, **given: Any) -> int:
        from cluster.client.predictions import Predictions, ServerError

        try:
            with closing(Predictions(url, api_key())) as predictions:
                return command(predictions, **given)
        except ServerError as error:
            raise click.ClickException(str(error)) from error

    click.option("--json", "as_json", is_flag=True, help="Print JSON, and no progress.")(asking)
    click.option("--url", type=URL, default="http://127.0.0.1:8000", show_default=True, help="The server.")(
        asking
    )
    return asking


def _with_input(command: Command) -> Command:
    """Adds the prompt and the options of an image. Passes the given ones to `command` as `asked`, and the
    model, by default the server's first."""

    @wraps(command)
    def with_input(predictions: "Predictions", **given: Any) -> int:
        asked = _popped(given, {name: name for name in ("prompt", *_INPUT, *_FLAGS)})
        if loras := given.pop("loras"):
            asked["loras"] = [_lora(text) for text in loras]
        if hires := _popped(given, {name: field for name, (field, _, _) in _HIRES.items()}):
            asked["hires"] = hires
        # The same submission must have the same bytes again, but each upload has a URL of its own.
        is_in_body = given.get("idempotency_key") is not None
        for name, picture in _popped(given, {name: name for name in _PICTURES}).items():
            asked[name] = input_of(picture, predictions, is_in_body=is_in_body)
        model = given.pop("model") or predictions.model()
        return command(predictions, model=model, asked=asked, **given)

    for option in reversed(_input_options()):
        option(with_input)
    return click.argument("prompt")(with_input)


def _input_options() -> list[Callable[[Command], Command]]:
    def option(name: str, text: str, *short: str, **of: Any) -> Callable[[Command], Command]:
        return click.option(f"--{name.replace('_', '-')}", *short, name, help=text, **of)

    return [
        click.option("--model", metavar="ID", help="One of the server's models; by default its first."),
        *(option(name, text, *_SHORT.get(name, ()), type=kind) for name, (kind, text) in _INPUT.items()),
        *(option(name, text, type=PICTURE) for name, text in _PICTURES.items()),
        *(option(name, text, type=kind) for name, (_, kind, text) in _HIRES.items()),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="NAME[:SCALE]",
            help="An adapter by its name, and how strong it is (1). May be given again.",
        ),
        *(option(name, text, is_flag=True, default=None) for name, text in _FLAGS.items()),
    ]


def _lora(text: str) -> dict[str, Any]:
    """An adapter from "name:0.8". A URL has colons too."""
    name, _, scale = text.rpartition(":")
    try:
        value = float(scale)
    except ValueError:
        return {"id": text}
    if not isfinite(value):
        raise click.BadParameter(
            f"{text!r} has the scale {scale}; it is a finite number", param_hint="--lora"
        )
    return {"id": name, "scale": value} if name else {"id": text}


def _popped(given: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Removes options and returns the given ones by their fields. fields: by option"""
    values = {field: given.pop(option) for option, field in fields.items()}
    return {field: value for field, value in values.items() if value is not None}


@click.command(epilog=KEY_HELP)
@_asking
@_with_input
@_OUTPUT
def generate(
    predictions: "Predictions", model: str, asked: dict[str, Any], output: Path | None, as_json: bool
) -> int:
    """Make an image from PROMPT and wait for it.

    Without --output the image is saved under a new name in the working folder, made from the prompt and the
    seed, if one is given. With --json alone it stays on the server.
    """
    created = predictions.create(model, asked)
    is_saved = output is not None or not as_json
    try:
        return _finish(predictions, created["id"], output, as_json, is_saved=is_saved)
    except KeyboardInterrupt:
        predictions.cancel(created["id"])
        raise


@click.group(epilog=KEY_HELP)
def jobs() -> None:
    """Work with a server's jobs."""


@jobs.command(epilog=KEY_HELP)
@_asking
@_with_input
@click.option("--webhook", help="A URL that receives the job's events.")
@click.option(
    "--idempotency-key", type=HEADER_VALUE, help="Submit the same job only once, however often you try."
)
def submit(
    predictions: "Predictions",
    model: str,
    asked: dict[str, Any],
    webhook: str | None,
    idempotency_key: str | None,
    as_json: bool,
) -> int:
    """Submit a job and print its id."""
    created = predictions.create(model, asked, webhook, idempotency_key)
    print(json.dumps(created) if as_json else created["id"])
    return 0


@jobs.command(epilog=KEY_HELP)
@_asking
@click.argument("prediction_id", metavar="ID")
def get(predictions: "Predictions", prediction_id: str, as_json: bool) -> int:
    """Print a job."""
    return _show(predictions.get(prediction_id), as_json)


@jobs.command(epilog=KEY_HELP)
@_asking
@click.argument("prediction_id", metavar="ID")
@_OUTPUT
def wait(predictions: "Predictions", prediction_id: str, output: Path | None, as_json: bool) -> int:
    """Wait for a job."""
    return _finish(predictions, prediction_id, output, as_json, is_saved=output is not None)


@jobs.command(epilog=KEY_HELP)
@_asking
@click.argument("prediction_id", metavar="ID")
def cancel(predictions: "Predictions", prediction_id: str, as_json: bool) -> int:
    """Cancel a job."""
    canceled = predictions.cancel(prediction_id)
    status = _show(canceled, as_json)
    return 0 if canceled["status"] == "canceled" else status


@jobs.command(epilog=KEY_HELP)
@_asking
@click.argument("prediction_id", metavar="ID")
def delete(predictions: "Predictions", prediction_id: str, as_json: bool) -> int:
    """Cancel a job if it is not finished, and delete it with its images."""
    predictions.delete(prediction_id)
    print(json.dumps({"id": prediction_id, "deleted": True}) if as_json else f"{prediction_id}: deleted")
    return 0


@jobs.command("list", epilog=KEY_HELP)
@_asking
def list_newest(predictions: "Predictions", as_json: bool) -> int:
    """Print the newest jobs."""
    newest = predictions.newest()
    if as_json:
        print(json.dumps(newest))
    else:
        from cluster.client.display import print_table

        print_table(newest)
    return 0


def _finish(
    predictions: "Predictions", prediction_id: str, output: Path | None, as_json: bool, *, is_saved: bool
) -> int:
    """Follows a job to its end and saves its images. output: None to name files after the prompt"""
    from cluster.client.display import followed

    prediction = followed(predictions, prediction_id, is_quiet=as_json)
    urls = prediction["output"] or []
    if is_saved and prediction["status"] == "succeeded":
        named = output or Path(_name(prediction) + PurePosixPath(urlsplit(urls[0]).path).suffix)
        for index, url in enumerate(urls):
            path = named if len(urls) == 1 else named.with_stem(f"{named.stem}-{index}")
            path = _save(predictions, url, path, urls[index:], is_replaced=output is not None)
            if not as_json:
                print(f"written to {path}", file=sys.stderr)
    return _show(prediction, as_json)


def _name(prediction: Mapping[str, Any]) -> str:
    """A file's name, without its ending: the prompt's words and the seed, if there is one."""
    given = prediction["input"]
    words = re.sub(r"[\W_]+", "-", str(given.get("prompt", "")).lower())[:_MAX_NAME_LENGTH].strip("-")
    return "-".join(str(part) for part in (words or prediction["id"], given.get("seed")) if part is not None)


def _new_file(path: Path) -> Path:
    """Makes an empty file and returns its path, with a number if the name is taken."""
    for number in count(1):
        name = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        with suppress(FileExistsError):
            name.touch(exist_ok=False)
            break
    return name


def _save(
    predictions: "Predictions", url: str, path: Path, left: Sequence[str], *, is_replaced: bool
) -> Path:
    """Saves an image and returns its path. is_replaced: replaces an existing file, else takes a free name

    Raises click.ClickException, which lists the URLs of unsaved images.
    """
    from cluster.client.predictions import ServerError

    try:
        image = predictions.download(url)
        path = path if is_replaced else _new_file(path)
        path.write_bytes(image)
    except OSError as error:
        raise click.ClickException(
            f"{path}: {error.strerror or error}; not saved: {' '.join(left)}"
        ) from error
    except ServerError as error:
        raise click.ClickException(f"{error}; not saved: {' '.join(left)}") from error
    return path


def _show(prediction: dict[str, Any], as_json: bool) -> int:
    """Prints a job for people or for scripts. Returns the exit status: 1 if the job went wrong."""
    if as_json:
        print(json.dumps(prediction))
    elif prediction["status"] == "failed":
        print(f"failed: {prediction['error']}", file=sys.stderr)
    else:
        print(f"{prediction['id']}: {prediction['status']}, {prediction['progress']:.0%}")
        for url in prediction["output"] or []:
            print(url)
    return 0 if prediction["status"] in ("starting", "processing", "succeeded") else 1
