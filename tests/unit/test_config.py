"""The configuration: misspelt or impossible keys give an error that says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.models import ModelSource, load_model_info
from serve.config.app import AppConfig, ConfigError
from serve.config.model import PROJECT_FOLDER, CostModelFile
from serve.config.schema import keys_table
from serve.jobs.resources import resolve
from tests import tiny_models


def test_the_empty_configuration_serves_the_embedded_model() -> None:
    config = AppConfig()
    assert config.model.source().path == str(PROJECT_FOLDER / "models" / "shapes")


def test_a_replica_that_goes_has_time_and_a_new_ingress_is_there_before_the_old_one_goes() -> None:
    config = AppConfig.model_validate({"denoiser": {"drain_timeout_s": 7, "max_surge_percent": 50}})
    options = config.denoiser.deployment_options()
    assert (options["graceful_shutdown_timeout_s"], options["max_surge_percent"]) == (7, 50)
    assert config.ingress.deployment_options()["max_surge_percent"] == 100


def test_ray_reserves_what_is_said() -> None:
    config = AppConfig.model_validate(
        {
            "ingress": {"resources": {"cpu_worker": 0.5}},
            "denoiser": {"num_gpus": 0.5, "num_cpus": 2},
            "jobs": {"resources": {"cpu_worker": 1}},
        }
    )
    reserved = [
        options["ray_actor_options"]
        for options in (
            config.ingress.deployment_options(),
            config.denoiser.deployment_options(),
            config.jobs.runner_options(),
        )
    ]
    assert reserved == [
        {"num_cpus": 0.25, "resources": {"cpu_worker": 0.5}},
        {"num_cpus": 2, "num_gpus": 0.5, "resources": {}},
        {"num_cpus": 0.25, "resources": {"cpu_worker": 1}},
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"modell": {}}, "modell: unknown key; the nearest one is 'model'"),
        ({"model": {"atention": "sdpa"}}, "model.atention: unknown key; the nearest one is 'attention'"),
        ({"denoiser": {"max_row": 4}}, "denoiser.max_row: unknown key; the nearest one is 'max_rows'"),
        (
            {"decoder": {"autoscaling": {"max_replica": 4}}},
            "decoder.autoscaling.max_replica: unknown key; the nearest one is 'max_replicas'",
        ),
        (
            {"model": {"device": "cuda"}, "denoiser": {"num_gpus": 1}},
            r"each stage, else all would be on one; set encoder\.num_gpus, decoder\.num_gpus",
        ),
        ({"model": {"device": "simulated"}}, "simulated needs cost_model, a file of `midstep profile`"),
        ({"model": {"sizes": ["big"]}}, r"model\.sizes|should match pattern"),
        ({"denoiser": {"row_counts": [2, 8]}}, r"the largest \(8\) is less than max_rows \(32\)"),
        ({"model": {"dtype": "float8"}}, "'float32', 'bfloat16' or 'float16'"),
        (
            {"denoiser": {"rows_per_forward": 64}},
            r"rows_per_forward \(64\) is not within 2 and max_rows \(32\)",
        ),
        (
            {"encoder": {"max_batch_size": 99}},
            r"max_ongoing_requests \(32\) is less than max_batch_size \(99\)",
        ),
        (
            {"ingress": {"autoscaling": {"min_replicas": 3, "max_replicas": 2}}},
            r"min_replicas \(3\) is more than",
        ),
        ({"denoiser": {"max_rows": 4}}, r"deterministic_rows \(8\) is more than max_rows \(4\)"),
        ({"limits": {"max_queue": 5}}, r"max_queue \(5\) is less than max_num_images \(10\)"),
        ({"limits": {"max_num_images": 11}}, "less than or equal to 10"),
        (
            {"ingress": {"drain_timeout_s": 60}},
            r"ingress.drain_timeout_s \(60\) is not more than limits.max_wait_s \(60\)",
        ),
        (
            {"defaults": {"num_inference_steps": 101}},
            r"defaults.num_inference_steps \(101\) is more than limits",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(args: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AppConfig.model_validate(args)


def test_a_model_folder_that_is_none_is_named() -> None:
    config = AppConfig.model_validate({"model": {"path": "./nowhere"}})
    with pytest.raises(ConfigError, match=r"model.path: there is no folder './nowhere' in /"):
        config.model.source()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models", "'models' is no folder in diffusers format"),
        ("models/nowhere", "there is no folder 'models/nowhere' in /"),
        ("/nowhere/model", "there is no folder '/nowhere/model'$"),
        ("too/many/parts", "there is no folder 'too/many/parts'"),
        ("sd_xl.safetensors", "'sd_xl.safetensors' is a single file, and only folders"),
        ("checkpoints/v1-5.ckpt", "'checkpoints/v1-5.ckpt' is a single file, and only folders"),
        ("~nobody-has-this-name/m", "'~nobody-has-this-name/m' names no home folder"),
    ],
)
def test_a_path_that_is_no_model_is_named_and_no_hub_is_asked(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^model.path: {message}"):
        AppConfig.model_validate({"model": {"path": path}}).model.source()


def test_a_hub_id_stays_as_it_is() -> None:
    config = AppConfig.model_validate({"model": {"path": "owner/name-1.0", "allow_pickle": True}})
    assert config.model.source() == ModelSource("owner/name-1.0", allow_pickle=True)


def test_paths_may_begin_in_the_home_folder(
    tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "models" / "mine")
    config = AppConfig.model_validate(
        {
            "model": {"path": "~/models/mine", "compile": True, "compile_cache": "~/compiled"},
            "jobs": {"data_folder": "~/data"},
        }
    )
    assert config.model.source().path == str(folder)
    assert config.model.placement().compile_cache == str(tmp_path / "compiled")
    jobs = resolve(config.jobs)
    assert jobs.data_folder == str(tmp_path / "data")
    assert jobs.database_url == f"sqlite:///{tmp_path}/data/jobs.sqlite"
    assert (tmp_path / "data" / "webhook_secret").is_file()


def test_only_denoisers_promise_checkpoints() -> None:
    promises = {
        name: "checkpoint" in (type(stage).model_fields["drain_timeout_s"].description or "")
        for name, stage in AppConfig().stages.items()
    }
    assert promises == {"encoder": False, "denoiser": True, "decoder": False}


def test_a_cost_model_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("{}")
    for path in ("nowhere.json", str(tmp_path / "empty.json")):
        config = AppConfig.model_validate({"model": {"cost_model": path}})
        with pytest.raises(ConfigError, match=f"model.cost_model: '{path}' is no file of `midstep profile`"):
            config.model.known_cost()


def test_a_cost_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    curve = Curve(0.01, 2, 0.001, ((1, 0.5), (2, -0.25)))
    cost = CostModel(curve, StageCost((((16, 16), curve), ((16, 24), curve))), StageCost((((8, 8), curve),)))
    path = tmp_path / "cost_model.json"
    file = CostModelFile(path="models/shapes", dtype="float32", device="CPU", cost_model=cost)
    path.write_text(file.model_dump_json())
    assert AppConfig.model_validate({"model": {"cost_model": str(path)}}).model.known_cost() == cost
    other = AppConfig.model_validate({"model": {"cost_model": str(path), "dtype": "bfloat16"}})
    with pytest.raises(ConfigError, match="was measured with 'models/shapes' in float32"):
        other.model.known_cost()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"defaults": {"sampler": "Elephant"}}, "defaults.sampler: unknown sampler 'Elephant'"),
        ({"model": {"sizes": ["100x128"]}}, "model.sizes: 100x128 is not of multiples of 8"),
        ({"model": {"sizes": ["2048x128"]}}, r"2048x128 is larger than limits.max_width \(1024\)"),
        ({"defaults": {"width": 100}}, "defaults.width: 100 is not a multiple of 8"),
        ({"limits": {"max_pixels": 9000}}, "128x128 has more pixels than limits.max_pixels"),
        ({"limits": {"max_height": 64}}, r"defaults.height: 128 is not .* to limits.max_height \(64\)"),
    ],
)
def test_defaults_that_the_model_cannot_have_are_named(args: dict[str, object], message: str) -> None:
    config = AppConfig.model_validate(args)
    with pytest.raises(ConfigError, match=message):
        config.check_for(load_model_info(config.model.source()))


def test_the_readme_has_the_table_of_keys() -> None:
    assert keys_table(AppConfig) in (PROJECT_FOLDER / "README.md").read_text()
