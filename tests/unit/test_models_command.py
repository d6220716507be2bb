"""`midstep models`: what it reads in, writes and removes, and what it says of what it does not."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster.cli import main
from cluster.models import reading
from cluster.models.files import write_new
from cluster.models.report import size
from deployments.engine.fingerprint import MANIFEST
from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from serve import catalog_model
from serve.catalog import Catalog
from serve.checks import only_application
from serve.config.schema import ConfigError
from tests import tiny_models

Models = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a configuration, two single files and a model in it."""
    monkeypatch.chdir(tmp_path)
    write_config(catalog={"folder": "models.d"})
    for name in ("noobXL v1.safetensors", "lora.safetensors"):
        (tmp_path / name).touch()
    tiny_models.copy(model_folder("sd1"), tmp_path / "sd1")
    return tmp_path


@pytest.fixture
def copying(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reads in by copying a tiny model. Returns the names of what was read in."""
    read: list[str] = []

    def known(model: ModelToIngest, cache: Path) -> Path | None:
        found = cache / Path(model.source).name
        return found if found.is_dir() else None

    async def ingest(
        model: ModelToIngest, cache: Path, dtype: str, on_progress: Callable[[str, float], None]
    ) -> Path:
        for share in (0.0, 0.5):
            on_progress("reading unet", share)
        read.append(name := Path(model.source).name)
        if name == "lora.safetensors":
            raise IngestionError(f"{model.source} is a LoRA, not a model")
        read_in = tiny_models.copy(folder / "sd1", cache / name)
        digests = {"unet": name, "vae": "the same"}
        (read_in / MANIFEST).write_text(json.dumps({"digest": name, "digests": digests}))
        return read_in

    monkeypatch.setattr(catalog_model, "known", known)
    monkeypatch.setattr(reading, "ingest_in_process", ingest)
    return read


def write_config(**args: object) -> None:
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    Path("serve_config.yaml").write_text(yaml.safe_dump({"applications": [application]}))


@pytest.fixture
def models(capsys: pytest.CaptureFixture[str]) -> Models:
    """Runs the command and returns what it prints, or the error with which it ends."""

    def run(*arguments: str, error: bool = False) -> str:
        if not error:
            assert main(["models", *arguments]) == 0
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            main(["models", *arguments])
        return str(ended.value)

    return run


def test_a_model_is_read_in_described_and_written(
    copying: list[str], folder: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = models(
        *("add", "noobXL v1.safetensors", "--prediction-type", "v_prediction", "--zero-terminal-snr"),
        *("--alias", "noob", "--default", "num_inference_steps=28", "--default", "sampler=Euler a"),
    )
    assert yaml.safe_load((folder / "models.d" / "noobXL-v1.yaml").read_text()) == {
        "source": str(folder / "noobXL v1.safetensors"),
        "aliases": ["noob"],
        "prediction_type": "v_prediction",
        "zero_terminal_snr": True,
        "defaults": {"num_inference_steps": 28, "sampler": "Euler a"},
    }
    assert "family      sd1, 64x64 by itself\npredicts    epsilon\nparameters  0.5 million\n" in shown
    assert "  vae: 0.2 million, 684.7 KB\n" in shown
    assert shown.endswith("noobXL-v1.yaml. A running server serves 'noobXL-v1' within seconds.\n")
    assert [path.name for path in (folder / "models.d").iterdir()] == ["noobXL-v1.yaml"]
    assert main(["check", "serve_config.yaml"]) == 0
    assert "catalog: ok, its 1 files can be read" in capsys.readouterr().out


def test_progress_is_shown_without_a_terminal(
    copying: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["models", "check", "noobXL v1.safetensors"])
    assert capsys.readouterr().err == "  0% reading unet\n"


def test_check_reads_in_and_writes_no_file(copying: list[str], folder: Path, models: Models) -> None:
    write_config()  # the folder is not needed
    shown = models("check", "noobXL v1.safetensors", "--default", "width=128")
    assert shown.endswith(f"{folder}/noobXL v1.safetensors can be served; `midstep models add` adds it.\n")
    assert not (folder / "models.d").exists()
    models("check", "noobXL v1.safetensors")
    assert copying == ["noobXL v1.safetensors"]


@pytest.mark.parametrize("command", ["add", "check"])
def test_what_is_no_model_is_refused_and_nothing_is_written(
    command: str, copying: list[str], folder: Path, models: Models
) -> None:
    assert "is a LoRA, not a model" in models(command, "lora.safetensors", error=True)
    shown = models(command, "noobXL v1.safetensors", "--default", "width=99", error=True)
    assert shown.startswith("defaults.width: 99 is not a multiple of 2 from 64")
    assert not (folder / "models.d").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("noobXL v1.safetensors", "--id", "shapes"), "'shapes' is taken: it is a name of the default model"),
        (("noobXL v1.safetensors", "--id", "a"), "'a' is taken: it is a name of b.yaml; choose another"),
        (("noobXL v1.safetensors", "--alias", "b"), "'b' is taken: it is a name of b.yaml"),
        (("noobXL v1.safetensors", "--id", "c"), "models.d/c.yml is there already; choose another id"),
        (("noobXL v1.safetensors", "--id", "x", "--alias", "x"), "aliases: 'x' is given twice"),
        (("noobXL v1.safetensors", "--id", "../x"), "id: '../x' was given; up to 100 letters"),
        (("nowhere.safetensors",), "source: there is no file or folder 'nowhere.safetensors' in /"),
        (("noobXL v1.safetensors", "--vae", "./x"), "vae: there is no file or folder './x' in /"),
        (("sd1", "--default", "widht=1"), "defaults.widht: unknown key; the nearest one is 'width'"),
        (("sd1", "--default", "width=big"), "defaults.width: Input should be a valid integer"),
        (("sd1", "--default", "sampler=null"), "defaults.sampler: Input should be a valid string"),
    ],
)
def test_what_cannot_be_added_is_told_before_it_is_read(
    arguments: tuple[str, ...], message: str, copying: list[str], folder: Path, models: Models
) -> None:
    (folder / "models.d").mkdir()
    (folder / "models.d" / "b.yaml").write_text("source: x/y\naliases: [a]\n")
    (folder / "models.d" / "c.yml").write_text("sourc: x/y\n")
    assert message in models("add", *arguments, error=True)
    assert copying == []


def test_a_default_is_a_key_and_a_value(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "add", "sd1", "--default", "width"])
    message = "argument --default: 'width' is not KEY=VALUE, such as num_inference_steps=28\n"
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.parametrize(
    "arguments", [("add", "sd1"), ("remove", "a"), ("list",)], ids=lambda given: given[0]
)
def test_a_configuration_without_a_catalog_is_told_how_to_have_one(
    arguments: tuple[str, ...], folder: Path, models: Models
) -> None:
    write_config()
    shown = models(*arguments, error=True)
    assert "catalog:\n  folder: models.d" in shown


def test_the_list_says_what_a_server_would(copying: list[str], folder: Path, models: Models) -> None:
    assert models("list") == f"There are no models in {folder}/models.d; `midstep models add` adds one.\n"
    models("add", "sd1", "--id", "ready")
    for name, text in {
        "broken": "sourc: x/y",
        "later": "source: owner/name",
        "taken": "source: owner/name\nid: shapes",
    }.items():
        (folder / "models.d" / f"{name}.yaml").write_text(text)
    assert [line.split("\t") for line in models("list").splitlines()] == [
        ["broken", "", "", "", "refused: sourc: unknown key; the nearest one is 'source'", ""],
        ["later", "", "", "", "to be read", "owner/name"],
        ["ready", "sd1", "1.9 MB", "epsilon", "ready", str(folder / "sd1")],
        [
            *("shapes", "", "", ""),
            "refused: id: 'shapes' is a name of the default model (model.id or model.aliases)",
            "owner/name",
        ],
    ]
    [_, later, ready, _] = json.loads(models("list", "--json"))
    assert (later["state"], later["family"], later["problem"]) == ("to be read", None, None)
    assert (ready["id"], ready["state"], ready["prediction"]) == ("ready", "ready", "epsilon")
    assert ready["size_bytes"] > 1_900_000


def test_a_removed_model_has_no_file_any_more(copying: list[str], folder: Path, models: Models) -> None:
    catalog = folder / "models.d"
    models("add", "sd1", "--id", "noob", "--alias", "n")
    (catalog / "broken.yaml").write_text("sourc: x/y")
    (catalog / "other.yaml").write_text("source: x/y\nid: broken")
    for name, message in {
        "nob": f"no model 'nob' is in {catalog}; the nearest one is 'noob'",
        "n": "'n' is an alias of 'noob'; name the model by its id",
        "shapes": "'shapes' is the default model (model.id), which is not in the catalog",
        "broken": f"'broken' is the id in broken.yaml and other.yaml of {catalog}; delete the one that is",
    }.items():
        assert models("remove", name, error=True).startswith(message)
    assert "jobs that it has accepted still finish" in models("remove", "noob")
    (catalog / "other.yaml").unlink()
    models("remove", "broken")
    assert list(catalog.iterdir()) == []


def test_a_file_that_no_parser_understands_is_listed_and_can_be_removed(folder: Path, models: Models) -> None:
    catalog = folder / "models.d"
    catalog.mkdir()
    for name, text in {
        "cycle": "&a [*a]",
        "date": "revision: 2024-02-31",
        "deep": 3000 * "[",
        "good": "source: x/y",
        "keys": "[1]: x",
        "long": f"source: {300 * 'a'}/b",
    }.items():
        (catalog / f"{name}.yaml").write_text(text)
    shown = [line.split("\t") for line in models("list").splitlines()]
    refused = {row[0] for row in shown if row[4].startswith("refused: ")}
    assert refused == {"cycle", "date", "deep", "keys", "long"}
    models("remove", "deep")
    models("remove", "good")
    assert not (catalog / "deep.yaml").exists()


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    write_new(tmp_path / "a.yaml", "first")
    with pytest.raises(ConfigError, match=r"a\.yaml is there already; choose another id"):
        write_new(tmp_path / "a.yaml", "second")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.yaml", "first")]


def test_sizes_are_in_words() -> None:
    shown = [size(num_bytes) for num_bytes in (0, 999, 1000, 6_938_000_000, 2_000_000_000_000)]
    assert shown == ["0 B", "999 B", "1.0 KB", "6.9 GB", "2000.0 GB"]


def test_parts_that_other_models_have_are_kept_once(copying: list[str], folder: Path, models: Models) -> None:
    models("add", "sd1")
    shown = models("check", "noobXL v1.safetensors")
    assert "  unet: 0.3 million, 1.0 MB\n" in shown
    assert "  vae: 0.2 million, 684.7 KB, the same as in 'sd1': kept once\n" in shown


def test_what_the_command_has_read_in_a_server_has_at_once(folder: Path, models: Models) -> None:
    """In a process of its own, as it is without a test."""
    models("add", "sd1", "--id", "one", "--prediction-type", "v_prediction")
    catalog = Catalog(only_application(Path("serve_config.yaml")))

    async def look() -> None:
        watching = asyncio.create_task(catalog.watch())
        assert await catalog.ready(20)
        watching.cancel()

    asyncio.run(look())
    model = catalog.models["one"]
    assert model.info.scheduler_config["prediction_type"] == "v_prediction"
    assert model.size_bytes > 1_900_000
