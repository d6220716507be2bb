"""The command `midstep`.

Each of its commands imports only what it needs: those that ask a server must not wait for torch to load.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from cluster.bench.option_values import read_writable_file, told
from serve.config.api_keys import ApiKeyConfig, key_sha256, new_key
from serve.config.schema import ConfigError, keys_table


def _print_new_key(name: str) -> None:
    key = new_key()
    try:
        client = ApiKeyConfig(name=name, key_sha256=key_sha256(key))
    except ValidationError as error:
        sys.exit(f"NAME: {error.errors()[0]['msg']}, but {name!r} was given")
    print(
        f"The key of {client.name}, which is kept nowhere and shown only now:\n\n{key}\n\n"
        "For the server's configuration, under `args`:\n\n"
        f'api_keys:\n  - name: "{client.name}"\n    key_sha256: "{client.key_sha256}"'
    )


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a configuration or its model, in a line or a few."""
    from deployments.engine.models import ModelLoadError

    try:
        yield
    except (ConfigError, ModelLoadError) as error:
        sys.exit(str(error))


def _with_extra(command: str, argv: list[str]) -> None:
    """Commands that need what a server does not."""
    try:
        if command == "bench":
            from cluster.bench.command import main as bench

            bench(argv)
            return
        from serve.checks import only_application

        with _told():
            if command == "rehearse":
                from cluster.rehearsal.command import main as rehearse

                rehearse(argv, only_application)
            else:
                from cluster.plan.command import main as plan

                plan(argv, only_application)
    except ModuleNotFoundError as error:
        sys.exit(
            f"midstep {command} needs {error.name}, which is not installed: "
            "pip install --constraint constraints.txt --editable '.[bench]'"
        )


def _with_file(arguments: argparse.Namespace) -> None:
    """Commands for a configuration file."""
    from cluster.profile import write_profile
    from serve.checks import check, checked_model_info, only_application
    from serve.http.edge import stand_before_the_proxy

    with _told():
        if arguments.command == "profile":
            write_profile(only_application(arguments.file), arguments.output)
            return
        configs = check(arguments.file)
        if arguments.command == "run":
            for config in configs:
                checked_model_info(config)
            stand_before_the_proxy(os.environ)
            serve = Path(sys.executable).with_name("serve")
            os.execv(serve, [str(serve), "run", str(arguments.file)])
    print(f"{arguments.file}: ok")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="midstep", description="Serve diffusion models, and ask who does.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keys", help="print the table of all keys")
    commands.add_parser("key", help="make an API key for a client").add_argument("name", metavar="NAME")
    commands.add_parser("bench", help="load a server and measure it")
    commands.add_parser("plan", help="say how many GPUs a load needs and what they cost, by simulation")
    commands.add_parser("rehearse", help="run a configuration on a local cluster of simulated GPUs")
    commands.add_parser("generate", help="make an image on a server and wait for it")
    commands.add_parser("jobs", help="submit|get|wait|cancel|list: work with a server's jobs")
    for name, text in (
        ("check", "check a file"),
        ("run", "check a file and serve it"),
        ("profile", "measure what its stages cost here, for its key model.cost_model"),
    ):
        commands.add_parser(name, help=text).add_argument("file", type=Path)
    commands.choices["profile"].add_argument(
        "--output", type=told(read_writable_file), default="cost_model.json"
    )
    return parser


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else None
    if command in ("generate", "jobs"):  # these and the next have options of their own
        from cluster.client.command import main as ask

        ask(sys.argv[1:])
        return
    if command in ("bench", "plan", "rehearse"):
        _with_extra(command, sys.argv[2:])
        return
    arguments = _parser().parse_args()
    if arguments.command == "key":
        _print_new_key(arguments.name)
    elif arguments.command == "keys":
        from serve.config.app import AppConfig

        print(keys_table(AppConfig))
    else:
        _with_file(arguments)


if __name__ == "__main__":
    main()
