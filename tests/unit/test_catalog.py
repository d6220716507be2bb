"""The catalog follows its folder: what comes, changes, breaks and goes. Reading in is replaced by a copy."""

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.ingestion.ingest import ingest
from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from serve import catalog as catalog_module
from serve import catalog_folder, catalog_model
from serve.catalog import Catalog, EntryState
from serve.config.app import AppConfig
from tests import tiny_models

OnProgress = Callable[[str, float], None]


@dataclass
class Ingestion:
    """Reads in by copying a tiny model. held: sources that are not finished until they are taken from here

    started, ended: sources in order; most: how many there were at once; kept: of each call of `shrink`
    """

    model: Path
    held: set[str] = field(default_factory=set)
    refused: dict[str, Exception] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)
    most: int = 0
    kept: list[set[str]] = field(default_factory=list)

    def known(self, model: ModelToIngest, cache: Path) -> Path | None:
        folder = cache / Path(model.source).name
        return folder if folder.is_dir() else None

    async def ingest(self, model: ModelToIngest, cache: Path, dtype: str, on_progress: OnProgress) -> Path:
        name = Path(model.source).name
        self.started.append(name)
        self.dtypes.add(dtype)
        self.most = max(self.most, len(self.started) - len(self.ended))
        try:
            on_progress("unet", 0.25)
            while name in self.held:  # noqa: ASYNC110  (a process has no event either)
                await asyncio.sleep(0.01)
            if name in self.refused:
                raise self.refused[name]
            return tiny_models.copy(self.model, cache / name)
        finally:
            self.ended.append(name)

    def shrink(self, limit_bytes: int, keep: list[Path]) -> None:
        assert limit_bytes == 200 * 2**30
        self.kept.append({path.name for path in keep})


@pytest.fixture
def ingestion(model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Ingestion:
    ingestion = Ingestion(model_folder("sd1"))

    class Cache:
        def __init__(self, folder: Path) -> None:
            self.shrink = ingestion.shrink

        def num_bytes(self) -> int:
            return 0

    monkeypatch.setattr(catalog_model, "known", ingestion.known)
    monkeypatch.setattr(catalog_module, "ingest_in_process", ingestion.ingest)
    monkeypatch.setattr(catalog_module, "Cache", Cache)
    monkeypatch.setattr(catalog_module, "_LOOK_INTERVAL_S", 0.02)
    return ingestion


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The catalog's folder, beside which there are single files."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.safetensors").touch()
    folder = tmp_path / "models.d"
    folder.mkdir()
    return folder


def write(folder: Path, name: str, source: str | None = None, **keys: object) -> Path:
    file = folder / f"{name}.yaml"
    part = folder / ".part"
    part.write_text(yaml.safe_dump({"source": source or f"../{name}.safetensors"} | keys))
    return part.rename(file)


def config(folder: Path, **args: Any) -> AppConfig:
    catalog = {"folder": str(folder), "cache_folder": str(folder.parent / "cache")}
    return AppConfig.model_validate({"catalog": catalog, **args})


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110  (the folder is looked at again and again)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def watching(catalog: Catalog) -> AsyncIterator[None]:
    task = asyncio.create_task(catalog.watch())
    try:
        assert await catalog.ready(20)
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def run(catalog: Catalog, story: Callable[[], Awaitable[None]]) -> None:
    async def told() -> None:
        async with watching(catalog):
            await story()

    asyncio.run(told())


def states(catalog: Catalog) -> dict[str, str]:
    return {status.id: str(status.state) for status in catalog.statuses}


def problem(catalog: Catalog, id: str) -> str | None:
    return next(status.problem for status in catalog.statuses if status.id == id)


def test_a_model_is_read_in_when_its_file_comes_and_dropped_when_it_goes(
    ingestion: Ingestion, folder: Path
) -> None:
    catalog = Catalog(config(folder, model={"dtype": "bfloat16"}))
    ingestion.held = {"a.safetensors"}

    async def story() -> None:
        assert catalog.models == {}
        file = write(folder, "a", aliases=["first"], defaults={"num_inference_steps": 7})
        await until(lambda: ingestion.started)
        [status] = catalog.statuses
        assert (status.id, status.file, status.state) == ("a", file, EntryState.READING)
        assert (status.what, status.share) == ("unet", 0.25)
        assert catalog.models == {}
        ingestion.held.clear()
        await until(lambda: catalog.models)
        model = catalog.models["a"]
        assert (model.family, model.info.default_width, model.entry.aliases) == ("sd1", 64, ("first",))
        assert model.ref.source.path == str(folder.parent / "cache" / "a.safetensors")
        assert model.size_bytes > 10_000
        await until(lambda: len(ingestion.kept) == 2)
        file.unlink()
        await until(lambda: not catalog.models)
        assert catalog.statuses == []

    run(catalog, story)
    assert (ingestion.dtypes, ingestion.kept) == ({"bfloat16"}, [set(), {"a.safetensors"}])


def test_what_was_read_in_before_is_ready_at_the_first_look(ingestion: Ingestion, folder: Path) -> None:
    tiny_models.copy(ingestion.model, folder.parent / "cache" / "a.safetensors")
    write(folder, "a")
    catalog = Catalog(config(folder))

    async def story() -> None:
        assert list(catalog.models) == ["a"]

    run(catalog, story)
    assert ingestion.started == []


def test_without_a_folder_there_are_no_models() -> None:
    catalog = Catalog(AppConfig())
    asyncio.run(catalog.watch())
    assert (catalog.models, catalog.statuses) == ({}, [])


def test_models_are_read_in_one_at_a_time_and_a_bad_one_stops_none(
    ingestion: Ingestion, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ingestion.refused = {"b.safetensors": IngestionError("b.safetensors is a LoRA\nuse it so")}
    for name in ("a", "b", "c"):
        write(folder, name)
    (folder / "d.yaml").write_text("sourc: x")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: "reading" not in states(catalog).values())
        await asyncio.sleep(0.1)  # some more looks

    with caplog.at_level(logging.WARNING, "ray.serve"):
        run(catalog, story)
    assert states(catalog) == {"a": "ready", "b": "refused", "c": "ready", "d": "refused"}
    assert problem(catalog, "b") == "b.safetensors is a LoRA\nuse it so"
    assert (list(catalog.models), ingestion.most) == (["a", "c"], 1)
    assert sorted(caplog.messages) == [
        f"{folder}/b.yaml: b.safetensors is a LoRA; use it so",
        f"{folder}/d.yaml: sourc: unknown key; the nearest one is 'source'",
    ]


def test_what_another_replica_reads_in_meanwhile_is_not_read_in_again(
    ingestion: Ingestion, folder: Path
) -> None:
    ingestion.held = {"a.safetensors"}
    write(folder, "a")
    write(folder, "b")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: ingestion.started)
        tiny_models.copy(ingestion.model, folder.parent / "cache" / "b.safetensors")
        await until(lambda: states(catalog) == {"a": "reading", "b": "ready"})
        ingestion.held.clear()
        await until(lambda: list(catalog.models) == ["a", "b"])

    run(catalog, story)
    assert ingestion.started == ["a.safetensors"]


def test_an_unexpected_error_is_one_models_own(
    ingestion: Ingestion, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ingestion.refused = {"a.safetensors": ZeroDivisionError("why?")}
    write(folder, "a")
    write(folder, "b")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: "b" in catalog.models)

    run(catalog, story)
    assert problem(catalog, "a") == "source: ZeroDivisionError('why?'); the server's log has more"
    assert "Traceback" in caplog.text


def test_a_changed_file_keeps_its_model_until_the_new_one_is_ready(
    ingestion: Ingestion, folder: Path
) -> None:
    write(folder, "a")
    catalog = Catalog(config(folder))
    ingestion.held = {"b.safetensors"}

    async def story() -> None:
        await until(lambda: catalog.models)
        before = catalog.models
        write(folder, "a", "../b.safetensors")
        await until(lambda: ingestion.started[1:])
        assert (catalog.models, states(catalog)) == (before, {"a": "reading"})
        ingestion.held.clear()
        await until(lambda: catalog.models["a"] is not before["a"])
        assert catalog.models["a"].ref.source.path.endswith("/b.safetensors")
        (folder / "a.yaml").write_text("source: [")
        await until(lambda: states(catalog) == {"a": "refused"})
        assert catalog.models["a"].ref.source.path.endswith("/b.safetensors")
        write(folder, "a", "../b.safetensors", defaults={"sampler": "Euler a"})
        await until(lambda: catalog.models["a"].entry.defaults.sampler == "Euler a")

    run(catalog, story)
    assert ingestion.started == ["a.safetensors", "b.safetensors"]


def test_nothing_is_read_in_any_more_for_a_file_that_has_gone_or_at_the_end(
    ingestion: Ingestion, folder: Path
) -> None:
    ingestion.held = {"a.safetensors", "c.safetensors"}
    file = write(folder, "a")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: ingestion.started)
        write(folder, "b")
        file.unlink()
        await until(lambda: "b" in catalog.models)
        write(folder, "c")
        await until(lambda: "c.safetensors" in ingestion.started)

    run(catalog, story)
    assert ingestion.ended == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert list(catalog.models) == ["b"]


def test_a_name_that_is_taken_is_refused_until_it_is_free(ingestion: Ingestion, folder: Path) -> None:
    write(folder, "a")
    write(folder, "b", aliases=["a"])
    write(folder, "c", id="shapes")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: catalog.models)
        assert states(catalog) == {"a": "ready", "b": "refused", "shapes": "refused"}
        assert problem(catalog, "b") == "aliases: 'a' is a name of a.yaml"
        (folder / "a.yaml").unlink()
        await until(lambda: list(catalog.models) == ["b"])

    run(catalog, story)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"width": 99}, "defaults.width: 99 is not a multiple of 2 from 64 to limits.max_width (128)"),
        ({"sampler": "Elephant"}, "defaults.sampler: unknown sampler 'Elephant'"),
        (
            {"sampler": "DDIM eta 1", "num_inference_steps": 99999},
            "defaults.num_inference_steps: 99999 is more",
        ),
        ({"clip_skip": 9}, "defaults.clip_skip: 9 is more than this model's text encoder can leave out (2)"),
    ],
)
def test_defaults_that_the_model_cannot_have_are_named(
    defaults: dict[str, object], message: str, ingestion: Ingestion, folder: Path
) -> None:
    write(folder, "a", defaults=defaults)
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: states(catalog) == {"a": "refused"})

    run(catalog, story)
    assert str(problem(catalog, "a")).startswith(message)


def test_a_folder_that_cannot_be_read_is_told_once_and_taken_up_when_it_is_there(
    ingestion: Ingestion, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    write(elsewhere, "a")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await asyncio.sleep(0.1)
        shutil.move(elsewhere, folder)
        await until(lambda: catalog.models)
        shutil.move(folder, elsewhere)
        await asyncio.sleep(0.1)
        assert list(catalog.models) == ["a"]

    with caplog.at_level(logging.WARNING, "ray.serve"):
        run(catalog, story)
    assert caplog.messages == 2 * [
        f"catalog.folder: {folder} cannot be read: No such file or directory; what was known of it stays"
    ]


def test_a_refused_model_is_tried_again_because_a_disk_may_have_been_away(
    ingestion: Ingestion, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catalog_module, "_FIRST_RETRY_S", 0.05)
    ingestion.refused = {"a.safetensors": IngestionError("the hub cannot be reached")}
    write(folder, "a")
    catalog = Catalog(config(folder))

    async def story() -> None:
        await until(lambda: len(ingestion.started) > 2)
        ingestion.refused.clear()
        await until(lambda: catalog.models)

    with caplog.at_level(logging.WARNING, "ray.serve"):
        run(catalog, story)
    assert len(caplog.messages) == 1


def test_simulated_devices_take_folders_of_configurations_as_they_are(
    ingestion: Ingestion, folder: Path
) -> None:
    weightless = shutil.copytree(
        ingestion.model, folder / "configs", ignore=shutil.ignore_patterns("*.safetensors")
    )
    for name in ("x", "y"):
        write(folder, name, "configs")
    simulated = {"device": "simulated", "cost_model": "cluster/devices/h200-sd15.json"}
    catalog = Catalog(config(folder, model=simulated))

    async def story() -> None:
        x, y = catalog.models["x"].ref, catalog.models["y"].ref
        assert x.source.path == str(weightless)
        assert (x.text, x.vae) == (y.text, y.vae)
        assert x.digest != y.digest
        assert x.unet != y.unet

    run(catalog, story)
    assert ingestion.started == []


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
