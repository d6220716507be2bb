"""`midstep generate PROMPT -o FILE` and `midstep jobs submit|get|wait|cancel|list`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from cluster.client.predictions import Predictions, ServerError

KEY_VARIABLE = "MIDSTEP_API_KEY"
_KEY_HELP = f"A server with API keys is sent the one in the environment variable {KEY_VARIABLE}."
# Of the command line, and what the server calls them.
_INPUT = {
    "negative_prompt": (str, "what it should not show"),
    "width": (int, "pixels"),
    "height": (int, "pixels"),
    "num_outputs": (int, "how many images; their seeds are seed, seed + 1, ..."),
    "num_inference_steps": (int, "denoising steps"),
    "guidance_scale": (float, "classifier-free guidance"),
    "scheduler": (str, 'the sampler, such as "DPM++ 2M Karras"'),
    "seed": (int, "the same seed gives the same image"),
    "output_format": (str, "png, webp or jpeg"),
    "priority": (int, "-2 to 2"),
}


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    try:
        with closing(Predictions(arguments.url, os.environ.get(KEY_VARIABLE))) as predictions:
            sys.exit(arguments.run(predictions, arguments))
    except ServerError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells have it


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="midstep", description=__doc__, epilog=_KEY_HELP)
    commands = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default %(default)s)")
    common.add_argument("--json", action="store_true", help="print the prediction as JSON, and no progress")
    asked = argparse.ArgumentParser(add_help=False)
    asked.add_argument("prompt")
    for name, (kind, text) in _INPUT.items():
        asked.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    asked.add_argument("--deterministic", action="store_true", default=None, help="the same bytes every time")
    fetched = argparse.ArgumentParser(add_help=False)
    fetched.add_argument("-o", "--output", type=Path, help="where the image goes; several are numbered")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("id")

    def add(group: Any, name: str, run: Any, text: str, *parents: argparse.ArgumentParser) -> Any:
        command = group.add_parser(
            name, help=text, description=text, epilog=_KEY_HELP, parents=[common, *parents]
        )
        command.set_defaults(run=run)
        return command

    add(commands, "generate", _generate, "make an image and wait for it", asked, fetched)
    jobs = commands.add_parser("jobs", help="work with jobs", epilog=_KEY_HELP).add_subparsers(required=True)
    submit = add(jobs, "submit", _submit, "hand in a job and print its id", asked)
    submit.add_argument("--webhook", help="a URL that is told of it")
    submit.add_argument("--idempotency-key", help="hand in the same job once only, however often you try")
    add(jobs, "get", _get, "print a job", named)
    add(jobs, "wait", _wait, "wait for a job", named, fetched)
    add(jobs, "cancel", _cancel, "cancel a job", named)
    add(jobs, "list", _list, "print the newest jobs")
    return parser


def _input(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("prompt", *_INPUT, "deterministic")
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _generate(predictions: Predictions, arguments: argparse.Namespace) -> int:
    created = predictions.create(predictions.model(), _input(arguments))
    try:
        return _finish(predictions, created["id"], arguments)
    except KeyboardInterrupt:
        predictions.cancel(created["id"])
        raise


def _submit(predictions: Predictions, arguments: argparse.Namespace) -> int:
    created = predictions.create(
        predictions.model(), _input(arguments), arguments.webhook, arguments.idempotency_key
    )
    print(json.dumps(created) if arguments.json else created["id"])
    return 0


def _get(predictions: Predictions, arguments: argparse.Namespace) -> int:
    return _show(predictions.get(arguments.id), arguments)


def _wait(predictions: Predictions, arguments: argparse.Namespace) -> int:
    return _finish(predictions, arguments.id, arguments)


def _cancel(predictions: Predictions, arguments: argparse.Namespace) -> int:
    canceled = predictions.cancel(arguments.id)
    status = _show(canceled, arguments)
    return 0 if canceled["status"] == "canceled" else status


def _list(predictions: Predictions, arguments: argparse.Namespace) -> int:
    newest = predictions.newest()
    if arguments.json:
        print(json.dumps(newest))
        return 0
    table = Table(Column("id", no_wrap=True), "status", "created", "prompt")  # an id is there to be copied
    for job in newest:
        created_at = job["created_at"][: len("2026-01-01T00:00:00")].replace("T", " ")
        table.add_row(job["id"], job["status"], created_at, str(job["input"].get("prompt", "")))
    Console().print(table)
    return 0


def _finish(predictions: Predictions, prediction_id: str, arguments: argparse.Namespace) -> int:
    """Follows a job to its end and fetches what it made."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    prediction: dict[str, Any] = {}
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=arguments.json) as progress:
        bar = progress.add_task("starting", total=1.0)
        for prediction in predictions.follow(prediction_id):
            progress.update(bar, description=prediction["status"], completed=prediction["progress"])
    if arguments.output is not None and prediction["status"] == "succeeded":
        for index, url in enumerate(prediction["output"]):
            path = _numbered(arguments.output, index, len(prediction["output"]))
            path.write_bytes(predictions.download(url))
            if not arguments.json:
                console.print(f"written to {path}")
    return _show(prediction, arguments)


def _numbered(path: Path, index: int, count: int) -> Path:
    return path if count == 1 else path.with_stem(f"{path.stem}-{index}")


def _show(prediction: dict[str, Any], arguments: argparse.Namespace) -> int:
    """For people or for scripts; the exit status says whether the job went wrong."""
    if arguments.json:
        print(json.dumps(prediction))
    elif prediction["status"] == "failed":
        print(f"failed: {prediction['error']}", file=sys.stderr)
    else:
        print(f"{prediction['id']}: {prediction['status']}, {prediction['progress']:.0%}")
        print(*(prediction["output"] or []), sep="\n")
    return 0 if prediction["status"] in ("starting", "processing", "succeeded") else 1
