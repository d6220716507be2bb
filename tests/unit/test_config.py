"""The configuration: misspelt or impossible keys give an error that says so."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import ValidationError

from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.model_source import ModelSource, load_model_info
from serve.config.app import AppConfig, ConfigError
from serve.config.deployment_options import ingress_options, stage_options
from serve.config.internal import InternalConfig
from serve.config.keys import keys_of, keys_tables, main_keys_table, type_name
from serve.config.limits import MAX_DEADLINE_S, MAX_PROMPT_LENGTH, MIN_SIZE
from serve.config.model import PROJECT_FOLDER, CostModelFile
from serve.config.old_keys import OLD_KEYS
from serve.config.schema import unknown_keys
from serve.jobs.resources import resolve
from tests import tiny_models

INFO = load_model_info(AppConfig().model.source())


def test_the_empty_configuration_serves_the_embedded_model() -> None:
    config = AppConfig()
    assert config.model.source().path == str(PROJECT_FOLDER / "models" / "shapes")


def test_a_replica_that_goes_has_time_and_a_new_ingress_is_there_before_the_old_one_goes() -> None:
    options = stage_options(AppConfig(), "denoiser", INFO)
    assert (options["graceful_shutdown_timeout_s"], options["max_surge_percent"]) == (120, 0)
    options = ingress_options(AppConfig(), INFO, 77)
    assert (options["graceful_shutdown_timeout_s"], options["max_surge_percent"]) == (77, 100)


def test_ray_reserves_what_is_said() -> None:
    config = AppConfig.model_validate(
        {
            "model": {"device": "cpu"},
            "ingress": {"resources": {"cpu_worker": 0.5}},
            "denoiser": {"num_gpus": 0.5, "num_cpus": 2},
            "jobs": {"resources": {"cpu_worker": 1}},
        }
    )
    reserved = [
        options["ray_actor_options"]
        for options in (
            ingress_options(config, INFO, 77),
            stage_options(config, "denoiser", INFO),
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
        ({"max_rows": 4}, "max_rows: unknown key here; there is denoiser.max_rows"),
        ({"api_keys": [{"colour": 1}]}, r"colour: unknown key; known are name, key_sha256, device_seconds"),
        (
            {"decoder": {"autoscaling": {"drian_s": 4}}},
            "decoder.autoscaling.drian_s: unknown key; the nearest one is 'drain_s'",
        ),
        (
            {"model": {"device": "cuda"}, "encoder": {"num_gpus": 0}, "decoder": {"num_gpus": 0}},
            r"else all would be on one; encoder\.num_gpus, decoder\.num_gpus must not be 0",
        ),
        ({"model": {"device": "simulated"}}, "simulated needs cost_model, a file of `midstep profile`"),
        ({"model": {"device": "cpu", "quantization": "fp8"}}, "fp8 needs a CUDA device .* device: cpu and"),
        ({"model": {"dtype": "float16", "quantization": "fp8"}}, "bfloat16 or auto; .* and dtype: float16"),
        ({"model": {"sizes": ["big"]}}, r"model\.sizes|should match pattern"),
        ({"model": {"dtype": "float8"}}, "'float32', 'bfloat16' or 'float16'"),
        (
            {"denoiser": {"max_rows": 8, "rows_per_forward": 64}},
            r"rows_per_forward \(64\) is more than max_rows \(8\)",
        ),
        ({"denoiser": {"max_rows": 1}}, "greater than or equal to 2"),
        ({"ingress": {"min_replicas": 3, "max_replicas": 2}}, r"min_replicas \(3\) is more than"),
        (
            {"decoder": {"autoscaling": {"drain_s": 30}}},
            r"decoder\.autoscaling\.cold_start_s \(30\) is not less than drain_s \(30\)",
        ),
        ({"limits": {"max_queue": 5}}, r"max_queue \(5\) is less than max_num_images \(10\)"),
        ({"limits": {"max_num_images": 11}}, "less than or equal to 10"),
        ({"adapters": {"max_rank": 100}}, r"adapters\.max_rank|multiple of 16"),
        ({"adapters": {"max_rank": 0}}, "greater than or equal to 16"),
        ({"adapters": {"max_gib": 3}}, "less than or equal to 2"),
        ({"adapters": {"host_gib": float("inf")}}, "less than or equal to 1000000"),
        ({"adapters": {"gpu_gib": 0}}, "greater than 0"),
        ({"adapters": {"max_per_request": 0}}, "greater than or equal to 1"),
        (
            {"adapters": {"allowed_hosts": ["https://huggingface.co"]}},
            "'https://huggingface.co' is no name of",
        ),
        ({"adapters": {"lora_folder": "x"}}, r"adapters\.lora_folder: unknown key"),
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
            "model": {"path": "~/models/mine", "compile": True},
            "jobs": {"data_folder": "~/data"},
        }
    )
    assert config.model.source().path == str(folder)
    assert config.placement().compile_cache == str(tmp_path / "data" / "compiled")
    jobs = resolve(config.jobs)
    assert jobs.data_folder == str(tmp_path / "data")
    assert jobs.database_url == f"sqlite:///{tmp_path}/data/jobs.sqlite"
    assert (tmp_path / "data" / "webhook_secret").is_file()


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
    path.write_text(file.model_copy(update={"dtype": "bfloat16"}).model_dump_json())
    on_cuda = AppConfig.model_validate({"model": {"cost_model": str(path), "device": "cuda"}})
    assert on_cuda.model.known_cost() == cost
    on_cpu = AppConfig.model_validate({"model": {"cost_model": str(path), "device": "cpu"}})
    with pytest.raises(ConfigError, match=r"with model\.dtype 'bfloat16' instead of 'auto'; without the key"):
        on_cpu.model.known_cost()


@pytest.mark.parametrize(
    ("served", "named"),
    [
        ({"path": "models/other"}, "with model.path 'models/shapes' instead of 'models/other';"),
        ({"dtype": "bfloat16"}, "with model.dtype 'float32' instead of 'bfloat16';"),
        ({"attention": "xformers"}, "with model.attention 'sdpa' instead of 'xformers';"),
        ({"quantization": "int8"}, "with model.quantization 'none' instead of 'int8';"),
        (
            {"dtype": "float16", "compile": True},
            "with model.dtype 'float32' instead of 'float16', model.compile False instead of True;",
        ),
    ],
)
def test_a_cost_model_that_was_measured_with_other_settings_is_refused_by_their_names(
    served: dict[str, object], named: str, tmp_path: Path
) -> None:
    curve = Curve(0.01, 2, 0.001)
    cost = CostModel(curve, StageCost((((16, 16), curve),)), StageCost((((16, 16), curve),)))
    path = tmp_path / "cost_model.json"
    file = CostModelFile(path="models/shapes", dtype="float32", device="CPU", cost_model=cost)
    path.write_text(file.model_dump_json())
    config = AppConfig.model_validate({"model": {"cost_model": str(path)} | served})
    with pytest.raises(ConfigError, match=re.escape(named)):
        config.model.known_cost()
    simulated = config.model.model_copy(update={"device": "simulated"})
    assert simulated.known_cost() == cost, "a simulated device is what its file says"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"defaults": {"sampler": "Elephant"}}, "defaults.sampler: unknown sampler 'Elephant'"),
        ({"model": {"sizes": ["100x128"]}}, "model.sizes: 100x128 is not of multiples of 8"),
        ({"model": {"sizes": ["2048x128"]}}, r"2048x128 is larger than limits.max_width \(256\)"),
        ({"defaults": {"width": 100}}, "defaults.width: 100 is not a multiple of 8"),
        ({"denoiser": {"rows_per_forward": 40}}, r"denoiser.rows_per_forward: .* max_rows \(32\)"),
        ({"limits": {"max_pixels": 9000}}, "128x128 has more pixels than limits.max_pixels"),
        ({"limits": {"max_height": 64}}, r"defaults.height: 128 is not .* to limits.max_height \(64\)"),
    ],
)
def test_defaults_that_the_model_cannot_have_are_named(args: dict[str, object], message: str) -> None:
    config = AppConfig.model_validate(args)
    with pytest.raises(ConfigError, match=message):
        config.check_for(load_model_info(config.model.source()))


@pytest.mark.parametrize("variable", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_replicas_on_gpus_get_pytorchs_allocator_set_unless_it_is(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)

    def environment(device: str, stage: str, **changes: object) -> object:
        config = AppConfig.model_validate({"model": {"device": device, **changes}, stage: {"num_gpus": 0.5}})
        return stage_options(config, stage, INFO)["ray_actor_options"].get("runtime_env")

    expected = {"env_vars": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}}
    for stage in ("encoder", "denoiser", "decoder"):
        assert environment("cuda", stage) == expected
        assert environment("cpu", stage) is None
        assert environment("simulated", stage, cost_model="cluster/devices/h200-sdxl.json") is None
    monkeypatch.setenv(variable, "backend:native")
    assert environment("cuda", "decoder") is None, "the replicas inherit it"


def test_only_a_catalog_has_several_models() -> None:
    sections: dict[str, object] = {"decoder": {"max_models": 3}}
    assert AppConfig.model_validate(sections).max_models("decoder") == 1
    sections["catalog"] = {"folder": "models/catalog"}
    assert AppConfig.model_validate(sections).max_models("decoder") == 3


def test_a_decoders_batch_follows_from_its_share_of_a_gpu_unless_it_is_given() -> None:
    on_cuda = AppConfig.model_validate({"model": {"device": "cuda"}, "decoder": {"max_replicas": 2}})
    assert on_cuda.decoding_share() == 0.08
    whole = AppConfig.model_validate({"model": {"device": "cuda"}, "decoder": {"num_gpus": 2}})
    assert whole.decoding_share() == 1
    without = AppConfig.model_validate({"model": {"device": "auto"}})
    assert without.decoding_share() == 0.16, "though it reserves none"
    given = AppConfig.model_validate({"decoder": {"max_batch_size": 7}})
    assert given.decoding_share() is None
    assert [one.max_decoded_images for one in (on_cuda, given)] == [4, 7]


def test_the_documentation_has_all_keys_and_the_readme_those_that_most_people_need() -> None:
    assert keys_tables(AppConfig) in (PROJECT_FOLDER / "docs" / "configuration.md").read_text()
    readme = (PROJECT_FOLDER / "README.md").read_text()
    assert f"<!-- keys -->\n{main_keys_table(AppConfig)}\n<!-- /keys -->" in readme


DOCUMENTS = [
    *PROJECT_FOLDER.glob("*.md"),
    *PROJECT_FOLDER.glob("docs/*.md"),
    *PROJECT_FOLDER.glob("cluster/**/*.md"),
]
SECTIONS = "|".join(AppConfig.model_fields)


def args_of(block: Any) -> Any:
    """An application's `args` in a YAML block; empty if it is about something else."""
    if not isinstance(block, dict):
        return {}
    if "applications" in block:
        return block["applications"][0]["args"]
    return block.get("args", block if block.keys() <= AppConfig.model_fields.keys() else {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_show_and_name_only_keys_that_there_are(document: Path) -> None:
    text = document.read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert list(unknown_keys(AppConfig, args_of(yaml.safe_load(block)), old_keys=OLD_KEYS)) == []
    if document.name != "CHANGELOG.md":  # the changelog has earlier versions' keys
        names = {name for key in keys_of(AppConfig) for name in key.names}
        sections = {name.rpartition(".")[0] for name in names}
        named = {name.rstrip(".") for name in re.findall(rf"`((?:{SECTIONS})\.[a-z_.]+)[`:]", text)}
        assert named <= names | sections | modules()


def modules() -> set[str]:
    """Names of files of the project or of a model, which look like keys."""
    return {path.name for folder in ("serve", "models") for path in (PROJECT_FOLDER / folder).rglob("*.py")}


def test_every_key_is_in_one_row_with_its_meaning_and_no_hidden_one_is() -> None:
    keys = keys_of(AppConfig)
    names = [name for key in keys for name in key.names]
    assert len(set(names)) == len(names)
    assert all(key.meaning and key.type for key in keys)
    assert not any(name.startswith("internal") for name in names)
    assert {"encoder.num_cpus", "jobs.num_cpus", "denoiser.num_threads", "api_keys[].name"} <= set(names)
    assert len([key for key in keys if key.is_main]) == 20


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Literal["a", "b"] | int, "`a`, `b` or integer"),
        (None | float | Literal["auto"], "`auto` or number or `null`"),
        (tuple[Annotated[str, "a mark"], ...], "list of text"),
        (dict[str, float], "mapping"),
        (tuple[AppConfig, ...], "list of mapping"),
        (bool, "boolean"),
    ],
)
def test_the_type_of_a_key_is_in_words(annotation: Any, words: str) -> None:
    assert type_name(annotation) == words


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"encoder": {"autoscaling": {"min_replicas": 2}}},
            "encoder.autoscaling.min_replicas: is now encoder.min_replicas",
        ),
        (
            {"ingress": {"autoscaling": {"max_replicas": 2}}},
            "ingress.autoscaling.max_replicas: is now ingress.max_replicas",
        ),
        (
            {"ingress": {"autoscaling": {"downscale_delay_s": 2}}},
            "ingress.autoscaling.downscale_delay_s: is now autoscaling.downscale_delay_s",
        ),
        ({"autoscaling": {"max_replicas": 2}}, "is a key of each stage, as denoiser.max_replicas"),
        (
            {"denoiser": {"checkpoint_interval_s": 1}},
            "denoiser.checkpoint_interval_s: is not a key any more, delete it: it is 2 s",
        ),
        (
            {"jobs": {"forget_after_s": 1}},
            "it is 30 days, or jobs.retention_s where that is more",
        ),
    ],
)
def test_a_key_of_an_earlier_version_says_what_became_of_it(args: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AppConfig.model_validate(args)


def test_what_old_keys_are_said_to_be_now_are_keys_and_they_themselves_are_none() -> None:
    names = {name for key in keys_of(AppConfig) for name in key.names}
    assert not names & set(OLD_KEYS)
    for old, sentence in OLD_KEYS.items():
        mentioned = {word.strip(",") for word in sentence.split() if "." in word}
        assert mentioned - {"0.2"} <= names, old


def test_what_old_keys_are_said_to_be_is_so() -> None:
    internal, options = InternalConfig(), stage_options(AppConfig(), "decoder", INFO)
    assert OLD_KEYS["jobs.lease_s"].endswith(f"it is {internal.lease_s:g} s")
    assert OLD_KEYS["jobs.poll_interval_s"].endswith(f"it is {internal.poll_interval_s:g} s")
    assert OLD_KEYS["denoiser.checkpoint_interval_s"].endswith(f"it is {internal.checkpoint_interval_s:g} s")
    assert OLD_KEYS["encoder.cache_size"].endswith(f"it is {internal.encoder_cache_size} texts")
    assert OLD_KEYS["decoder.max_hold_s"].endswith(f"it is {internal.max_hold_s:g} s")
    assert OLD_KEYS["decoder.drain_timeout_s"].endswith(f"{options['graceful_shutdown_timeout_s']:g} s")
    assert OLD_KEYS["limits.min_size"].endswith(f"it is {MIN_SIZE} pixels")
    assert OLD_KEYS["limits.max_prompt_length"].endswith(f"it is {MAX_PROMPT_LENGTH} characters")
    assert OLD_KEYS["limits.max_deadline_s"].endswith(f"it is {MAX_DEADLINE_S:g} s")


def test_a_stage_has_the_common_autoscaling_but_for_what_it_names() -> None:
    config = AppConfig.model_validate(
        {
            "autoscaling": {"drain_s": 100, "utilization": 0.9, "downscale_delay_s": 7},
            "encoder": {"autoscaling": {"utilization": 0.4}},
            "denoiser": {"max_replicas": 4},
        }
    )
    encoder, denoiser = config.autoscaling_of("encoder"), config.autoscaling_of("denoiser")
    assert (encoder.utilization, encoder.drain_s) == (0.4, 100)
    assert denoiser == replace(encoder, utilization=0.9, max_replicas=4)
    assert (encoder.is_on, denoiser.is_on) == (False, True)
    ingress = config.autoscaling_of("ingress")
    assert (ingress.policy, ingress.downscale_delay_s, ingress.target_ongoing_requests) == ("requests", 7, 64)


def test_replicas_are_as_many_as_the_fewest_unless_more_are_allowed() -> None:
    config = AppConfig.model_validate(
        {"encoder": {"min_replicas": 3}, "denoiser": {"max_replicas": 4}, "decoder": {"min_replicas": 0}}
    )
    found = [(stage.min_replicas, stage.max_replicas) for stage in config.stages.values()]
    assert found == [(3, 3), (1, 4), (0, 1)]


def test_on_cuda_stages_share_gpus_and_elsewhere_they_have_none() -> None:
    on_cuda = AppConfig.model_validate({"model": {"device": "cuda"}, "decoder": {"max_replicas": 3}})
    assert on_cuda.num_gpus() == {"encoder": 0.04, "denoiser": 0.8, "decoder": 0.0533}
    given = AppConfig.model_validate({"model": {"device": "cuda"}, "denoiser": {"num_gpus": 1}})
    assert given.num_gpus() == {"encoder": 0.04, "denoiser": 1, "decoder": 0.16}
    assert set(AppConfig.model_validate({"model": {"device": "cpu"}}).num_gpus().values()) == {0}


def test_batches_and_limits_suit_the_model() -> None:
    large = replace(INFO, default_height=1024, default_width=1024)
    for info, size, rows in ((INFO, 256, 32), (large, 2048, 16)):
        config = AppConfig()
        limits = config.limits_for(info)
        assert (limits.max_width, limits.max_height) == (size, size)
        assert config.engine_config(info).max_rows == rows
        assert stage_options(config, "denoiser", info)["max_ongoing_requests"] == 2 * rows
    few = AppConfig.model_validate({"denoiser": {"max_rows": 4}, "limits": {"max_width": 640}})
    assert few.engine_config(INFO).deterministic_rows == 4
    assert few.admission_batching(INFO).max_batch_size == 8
    assert few.limits_for(INFO).max_width == 640
    many = AppConfig.model_validate({"decoder": {"max_batch_size": 99}, "limits": {"max_queue": 9000}})
    assert stage_options(many, "decoder", INFO)["max_ongoing_requests"] == 4 * 99
    assert ingress_options(many, INFO, 77)["max_ongoing_requests"] == 18_000
