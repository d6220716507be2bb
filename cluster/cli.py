"""The command `midstep`.

Each command imports only what it needs, so that commands that ask a server need not wait for torch to load.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cluster.bench.option_values import WRITABLE_FILE

# Commands that are imported when they are called, with their text in `midstep --help`.
_ELSEWHERE = {
    "adapters": ("cluster.adapters.command", "Work with the folder of adapters (LoRAs): add|list|check."),
    "bench": ("cluster.bench.command", "Load a server and measure it."),
    "generate": ("cluster.client.command", "Make an image on a server and wait for it."),
    "jobs": ("cluster.client.command", "Work with a server's jobs: submit|get|wait|cancel|list."),
    "models": ("cluster.models.command", "Work with the catalog of models: add|remove|list|check."),
    "plan": ("cluster.plan.command", "Say how many GPUs a load needs and what they cost, by simulation."),
    "rehearse": ("cluster.rehearsal.command", "Run a configuration on a local cluster of simulated GPUs."),
}


class _Commands(click.Group):
    """The commands of this file and those of _ELSEWHERE."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*self.commands, *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _ = _ELSEWHERE[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(module), cmd_name)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"midstep {cmd_name} needs {error.name}, which is not installed: "
                f"{sys.executable} -m pip install --constraint constraints.txt --editable '.[bench]'"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        helps = {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        helps |= {name: text for name, (_, text) in _ELSEWHERE.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(helps.items()))


@click.group(cls=_Commands)
def midstep() -> None:
    """Serve diffusion models, and use a server."""


@midstep.command()
@click.option("--main", "is_main", is_flag=True, help="Only the keys that most people need.")
def keys(is_main: bool) -> None:
    """Print the tables of all configuration keys."""
    from serve.config.app import AppConfig
    from serve.config.keys import keys_tables, main_keys_table

    print(main_keys_table(AppConfig) if is_main else keys_tables(AppConfig))


@midstep.command()
@click.argument("name")
def key(name: str) -> None:
    """Make an API key for the client NAME."""
    from pydantic import ValidationError

    from serve.config.api_keys import ApiKeyConfig, key_sha256, new_key

    made = new_key()
    try:
        client = ApiKeyConfig(name=name, key_sha256=key_sha256(made))
    except ValidationError as error:
        raise click.ClickException(f"NAME: {error.errors()[0]['msg']}, but {name!r} was given") from error
    print(
        f"The key of {client.name}, which is kept nowhere and shown only now:\n\n{made}\n\n"
        "For the server's configuration, under `args`:\n\n"
        f'api_keys:\n  - name: "{client.name}"\n    key_sha256: "{client.key_sha256}"'
    )


@midstep.command()
@click.argument("file", type=Path)
@click.option("--memory", "with_memory", is_flag=True, help="Also count the GPU memory that it needs.")
def check(file: Path, with_memory: bool) -> None:
    """Check a configuration file and its models' folders. Says if its ports are taken on this machine."""
    from cluster.config_errors import shown_config_errors
    from cluster.machine_checks import Finding, findings, read_serve_config
    from serve.checks import check as check_file
    from serve.checks import check_adapters, check_catalog

    with shown_config_errors():
        applications = check_file(file)
        num_models = sum(map(check_catalog, applications))
        for application in applications:
            check_adapters(application)
    found = findings(read_serve_config(file), applications)
    if num_models:
        found.insert(0, Finding("catalog", f"its {num_models} files can be read"))
    print(f"{file}: keys: ok", *(f"{file}: {one}" for one in found), sep="\n")
    if any(one.verdict == "not ok" for one in found):
        raise click.ClickException(f"{file}: cannot be served as it is")
    if with_memory:
        from cluster.memory import memory_tables

        with shown_config_errors():
            print(*(f"\n{memory_tables(application)}" for application in applications), sep="\n")


@midstep.command()
@click.argument("file", type=Path)
def run(file: Path) -> None:
    """Check a configuration file and serve it until SIGTERM or Ctrl-C.

    It starts a separate Ray, which ends with it, or joins the Ray that the environment variable RAY_ADDRESS
    names.
    """
    import os

    from cluster.ray_environment import set_run_environment

    set_run_environment(os.environ)
    from cluster.config_errors import shown_config_errors
    from cluster.machine_checks import check_machine, read_serve_config
    from cluster.server import StartError, check_nothing_in_the_way, serve_config
    from serve.checks import check as check_file
    from serve.checks import checked_model_info

    address = os.environ.get("RAY_ADDRESS") or None
    with shown_config_errors():
        applications = check_file(file)
        for application in applications:
            checked_model_info(application)
        config = read_serve_config(file)
        check_machine(config, applications, has_own_ray=address is None)
        check_nothing_in_the_way(Path.cwd())
    try:
        serve_config(config, address)
    except StartError as error:
        raise click.ClickException(str(error)) from error


@midstep.command()
@click.argument("file", type=Path)
@click.option("--output", type=WRITABLE_FILE, default="cost_model.json", show_default=True)
def profile(file: Path, output: Path) -> None:
    """Measure the costs of a configuration's stages here, for its key model.cost_model."""
    import os

    from serve.config.deployment_options import allocator_variables

    os.environ.update(allocator_variables(os.environ))
    from cluster.config_errors import shown_config_errors
    from cluster.profile import write_profile
    from serve.checks import only_application

    with shown_config_errors():
        write_profile(only_application(file), output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    arguments: None for those of the process. Errors end it with SystemExit; a wrong option with one line,
    without the long usage.
    """
    try:
        status = midstep.main(arguments, prog_name="midstep", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.UsageError as error:
        print(f"{error.ctx.command_path if error.ctx else 'midstep'}: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except click.ClickException as error:
        sys.exit(error.format_message())
    except click.Abort:
        return 130  # as in shells
    return status if isinstance(status, int) else 0


def _sentence(error: click.UsageError) -> str:
    if not isinstance(error, click.BadParameter):
        return error.format_message()
    hint = error.param_hint
    if hint is None and error.param is not None:
        options = [*error.param.opts, *error.param.secondary_opts]
        is_option = isinstance(error.param, click.Option)
        hint = "/".join(options) if is_option else error.param.human_readable_name
    is_missing = isinstance(error, click.MissingParameter)
    return f"argument {hint}: {'is required' if is_missing else error.message}"


if __name__ == "__main__":
    sys.exit(main())
