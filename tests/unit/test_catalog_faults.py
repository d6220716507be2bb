"""What goes wrong around a catalog stops no other model: bad files, taken names, a full cache."""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.ingestion.ingest import ingest
from serve import catalog as catalog_module
from serve import catalog_folder
from serve.catalog import Catalog
from serve.config.app import AppConfig
from tests.catalog_folders import (
    Ingestion,
    config,
    folder_beside_files,
    problem,
    replace_ingestion,
    run,
    states,
    until,
    watching,
    write,
)


@pytest.fixture
def ingestion(model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Ingestion:
    return replace_ingestion(monkeypatch, model_folder("sd1"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_beside_files(tmp_path)


@pytest.mark.parametrize("text", ["revision: 2024-02-31", 3000 * "[", "? [a]\n: b", "&a [*a]"])
def test_a_file_that_no_parser_understands_stops_no_other(
    text: str, ingestion: Ingestion, folder: Path
) -> None:
    (folder / "a.yaml").write_text(text)
    write(folder, "b")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: catalog.models)

    run(catalog, story)
    assert states(catalog) == {"a": "refused", "b": "ready"}


@pytest.mark.parametrize("raiser", ["read_entry", "known_model"])
def test_an_unexpected_error_with_a_file_is_logged_and_stops_no_other(
    raiser: str,
    ingestion: Ingestion,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = {"read_entry": catalog_folder, "known_model": catalog_module}[raiser]
    original = getattr(module, raiser)

    def fail_for_a(*given: Any) -> Any:
        if any("a.safetensors" in str(one) or "a.yaml" in str(one) for one in given):
            raise ZeroDivisionError("why?")
        return original(*given)

    monkeypatch.setattr(module, raiser, fail_for_a)
    write(folder, "a")
    write(folder, "b")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: catalog.models)

    run(catalog, story)
    assert states(catalog) == {"a": "refused", "b": "ready"}
    assert "ZeroDivisionError" in str(problem(catalog, "a"))
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("other", ["0", "z"])  # before and after it by name
@pytest.mark.parametrize("as_alias", [False, True])
def test_a_model_leaves_its_name_to_a_file_that_has_it_now(
    other: str, as_alias: bool, ingestion: Ingestion, folder: Path
) -> None:
    """The first file has another id now, and its model is still being read in."""
    (folder.parent / f"{other}.safetensors").touch()
    write(folder, "a", id="name")
    catalog = Catalog(config(folder))
    ingestion.held = {"b.safetensors", f"{other}.safetensors"}

    async def story() -> None:
        await until(lambda: catalog.models)
        write(folder, "a", "../b.safetensors", id="changed")
        await until(lambda: "b.safetensors" in ingestion.started)
        assert list(catalog.models) == ["name"]
        write(folder, other, **({"aliases": ["name"]} if as_alias else {"id": "name"}))
        await until(lambda: not catalog.models)
        ingestion.held.clear()
        await until(lambda: len(catalog.models) == 2)
        owner = catalog.models[other if as_alias else "name"]
        assert owner.entry.source.endswith(f"/{other}.safetensors")

    run(catalog, story)


def test_a_source_that_has_changed_is_read_in_again(
    ingestion: Ingestion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "_CHECK_INTERVAL_S", 0.05)
    write(folder, "a")
    catalog = Catalog(config(folder))
    source, read_in = folder.parent / "a.safetensors", folder.parent / "cache" / "a.safetensors"

    async def story() -> None:
        await until(lambda: catalog.models)
        before = catalog.models
        ingestion.held = {"a.safetensors"}
        shutil.rmtree(read_in)  # as if it were under the key of another content
        source.write_text("other")
        await until(lambda: ingestion.started[1:])
        assert catalog.models == before, "it is served as it was meanwhile"
        ingestion.held.clear()
        await until(lambda: catalog.models["a"] is not before["a"])
        after = catalog.models
        source.unlink()
        await asyncio.sleep(0.2)
        assert catalog.models == after, "a disk may be away"

    run(catalog, story)
    assert ingestion.started == ["a.safetensors", "a.safetensors"]


def test_a_cache_stays_usable_by_catalogs_that_share_it(
    model_folder: Callable[[str], Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the real cache: what another catalog serves stays, and what has gone all the same comes again."""
    monkeypatch.setattr(catalog_module, "_LOOK_INTERVAL_S", 0.02)
    monkeypatch.setattr(catalog_module, "_CHECK_INTERVAL_S", 0.05)

    async def ingest_here(*given: Any) -> Path:
        return await asyncio.to_thread(ingest, *given)

    monkeypatch.setattr(catalog_module, "ingest_in_process", ingest_here)
    other = folder.with_name("others.d")
    other.mkdir()
    write(folder, "a", str(model_folder("sd1")))
    write(other, "b", str(model_folder("sd2")))
    tight = {"cache_folder": str(folder.parent / "cache"), "cache_gib": 1e-9}
    first, second = (
        Catalog(AppConfig.model_validate({"catalog": {"folder": str(one), **tight}}))
        for one in (folder, other)
    )

    def place(catalog: Catalog, id: str) -> Path:
        return Path(catalog.models[id].ref.source.path)

    async def story() -> None:
        async with watching(first):
            await until(lambda: first.models)
            os.utime(place(first, "a"), (1.0, 1.0))
            await until(lambda: place(first, "a").stat().st_mtime > 1.0)
            async with watching(second):
                await until(lambda: second.models)
                await until(lambda: "more than" in caplog.text)
                assert place(first, "a").is_dir()
            before = first.models
            shutil.rmtree(place(first, "a"))
            await until(lambda: first.models is not before)
            assert place(first, "a").is_dir()

    with caplog.at_level(logging.WARNING, "ray.serve"):
        asyncio.run(story())
