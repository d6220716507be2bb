"""What a command shows of models: what is in one, and a table of all."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from safetensors import safe_open

from cluster.models.survey import Listed
from deployments.engine.fingerprint import MANIFEST
from serve.catalog_model import CatalogModel

_PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
_UNITS = ("B", "KB", "MB", "GB")


@dataclass(frozen=True)
class Part:
    """A part's weights. shared_with: the id of another model that has the same, which is kept once"""

    name: str
    num_parameters: int
    size_bytes: int
    shared_with: str | None


def parts_of(model: CatalogModel, others: Sequence[CatalogModel]) -> list[Part]:
    """The parts that have weights. others: models that are read in"""
    digests = {one.entry.id: _digests(_folder(one)) for one in others if one.entry.id != model.entry.id}
    own = _digests(_folder(model))
    parts = []
    for name in _PARTS:
        files = sorted((_folder(model) / name).glob("*.safetensors"))
        shared = (id for id, theirs in digests.items() if name in own and theirs.get(name) == own[name])
        if files:
            num_parameters = sum(map(_num_parameters, files))
            size_bytes = sum(file.stat().st_size for file in files)
            parts.append(Part(name, num_parameters, size_bytes, next(shared, None)))
    return parts


def description(model: CatalogModel, others: Sequence[CatalogModel]) -> Iterator[str]:
    """Lines on what is in a model."""
    parts = parts_of(model, others)
    num_parameters = sum(part.num_parameters for part in parts)
    height, width = model.info.default_height, model.info.default_width
    yield f"family      {model.family}, {width}x{height} by itself"
    yield f"predicts    {prediction(model)}"
    yield f"parameters  {num_parameters / 1e6:,.1f} million"
    yield f"on disk     {size(model.size_bytes)}"
    for part in parts:
        kept_once = f", the same as in {part.shared_with!r}: kept once" if part.shared_with else ""
        yield f"  {part.name}: {part.num_parameters / 1e6:,.1f} million, {size(part.size_bytes)}{kept_once}"


def prediction(model: CatalogModel) -> str:
    """What the U-Net predicts, and whether its schedule ends without any signal."""
    config = model.info.scheduler_config
    predicted = str(config.get("prediction_type", "epsilon"))
    return f"{predicted}, zero terminal SNR" if config.get("rescale_betas_zero_snr") else predicted


def size(num_bytes: int) -> str:
    """The size in words, as disks are sold."""
    amount, unit = float(num_bytes), 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{num_bytes} B"


def as_json(listed: Listed) -> dict[str, Any]:
    model, entry = listed.model, listed.entry
    return {
        "id": listed.id,
        "aliases": list(entry.aliases) if entry else [],
        "state": listed.state,
        "problem": listed.problem,
        "family": model.family if model else None,
        "size_bytes": model.size_bytes if model else None,
        "prediction": prediction(model) if model else None,
        "source": entry.source if entry else None,
        "file": str(listed.file),
    }


def print_table(all_listed: Sequence[Listed]) -> None:
    """The models, as `print_rows` prints them."""
    heads = ("id", "family", "size", "prediction", "state", "source")
    print_rows(heads, [_row(listed) for listed in all_listed])


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere a line per row, with tabs between the columns, without the heads."""
    console = Console(markup=False, highlight=False)  # a problem may have brackets in it
    table = Table(*(Column(head, overflow="fold", no_wrap=head == "id") for head in heads), box=None)
    for row in rows:
        if console.is_terminal:
            table.add_row(*row)
        else:
            print(*(" ".join(cell.split()) for cell in row), sep="\t")
    if console.is_terminal:
        console.print(table)


def _row(listed: Listed) -> Sequence[str]:
    model = listed.model
    state = listed.state if listed.problem is None else f"{listed.state}: {listed.problem}"
    found = (model.family, size(model.size_bytes), prediction(model)) if model else ("", "", "")
    return listed.id, *found, state, listed.entry.source if listed.entry else ""


def _folder(model: CatalogModel) -> Path:
    return Path(model.ref.source.path)


def _digests(folder: Path) -> Mapping[str, str]:
    """The digests of a model's parts; none for a folder that is served in place."""
    try:
        digests: dict[str, str] = json.loads((folder / MANIFEST).read_bytes())["digests"]
    except FileNotFoundError:
        return {}
    return digests


def _num_parameters(file: Path) -> int:
    with safe_open(file, framework="np") as header:
        return sum(prod(header.get_slice(name).get_shape()) for name in header.keys())  # noqa: SIM118
