"""The progress of an application's start, as Serve and its replicas report it, and its display."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class Stage:
    """name: one of a few; detail: changes during the stage"""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


def stage_of(applications: Sequence[Mapping[str, Any]], measuring: Collection[str]) -> Stage:
    """The stage of a start.

    applications: Serve's report on each; measuring: deployments whose replicas report that they measure
    """
    deployments = [one for application in applications for one in application["deployments"].values()]
    if not deployments:
        return Stage("Building the application")
    ready = [one["name"] for one in deployments if one["status"] == "HEALTHY"]
    rest = [one["name"] for one in deployments if one["status"] != "HEALTHY"]
    measured = [name for name in rest if name in measuring]
    loading = [name for name in rest if name not in measuring]
    parts = {"ready": ready, "measuring": measured, "loading": loading}
    detail = "; ".join(f"{what} {', '.join(names)}" for what, names in parts.items() if names)
    if not rest:
        return Stage("Waiting for the first answer")
    return Stage("Measuring what work costs here" if measured else "Loading", detail)


class StartDisplay:
    """One live line on a terminal; elsewhere a line for each stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("")
        self._name = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._progress.stop()

    def show(self, stage: Stage) -> None:
        if self._console.is_terminal:
            self._progress.update(self._task, description=str(stage))
        elif stage.name != self._name:
            say(self._console, stage.name)
        self._name = stage.name


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints plain text without wrapping or colouring it."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
