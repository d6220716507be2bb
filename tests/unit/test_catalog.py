"""The catalog follows its folder: what comes, changes, breaks and goes. Reading in is replaced by a copy."""

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.ingestion.model_entry import IngestionError
from serve import catalog as catalog_module
from serve.catalog import Catalog, EntryState
from serve.config.app import AppConfig
from tests import tiny_models
from tests.catalog_folders import (
    Ingestion,
    config,
    folder_beside_files,
    problem,
    replace_ingestion,
    run,
    states,
    until,
    write,
)


@pytest.fixture
def ingestion(model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Ingestion:
    return replace_ingestion(monkeypatch, model_folder("sd1"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_beside_files(tmp_path)


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
