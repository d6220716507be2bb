"""The section `catalog` and the files of its folder: what is wrong with one is named by its key."""

from pathlib import Path

import pytest
import yaml

from cluster.cli import main
from deployments.ingestion.model_entry import ModelToIngest
from serve.config.catalog import CatalogConfig, EntryDefaults, effective_defaults
from serve.config.catalog_files import entry_files, name_clashes, read_entry
from serve.config.limits import DefaultsConfig
from serve.config.model import PROJECT_FOLDER, ModelConfig
from serve.config.schema import ConfigError


def write(file: Path, **keys: object) -> Path:
    file.write_text(yaml.safe_dump(keys))
    return file


@pytest.fixture
def noob(tmp_path: Path) -> Path:
    """The file of a model whose weights are beside it."""
    (tmp_path / "noobXL.safetensors").touch()
    return write(tmp_path / "noob-v1.1.yaml", source="noobXL.safetensors")


def test_a_file_with_a_source_is_enough(noob: Path) -> None:
    entry = read_entry(noob)
    assert (entry.id, entry.source) == ("noob-v1.1", str(noob.with_name("noobXL.safetensors")))
    assert entry.to_ingest() == ModelToIngest(str(noob.with_name("noobXL.safetensors")))


def test_paths_are_in_the_files_folder_or_else_in_the_project_or_hub_ids(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    entry = read_entry(write(tmp_path / "a.yaml", source="models/shapes", vae="vae", config="models/shapes"))
    assert entry.source == entry.config == str(PROJECT_FOLDER / "models" / "shapes")
    assert entry.vae == str(tmp_path / "vae")
    assert read_entry(write(tmp_path / "b.yaml", source="owner/name-1.0")).source == "owner/name-1.0"
    with pytest.raises(ConfigError, match="source: there is no file or folder 'vae/x'"):
        read_entry(write(tmp_path / "c.yaml", source="vae/x"))


def test_adapters_to_fuse_are_files_beside_it_or_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "style.safetensors").touch()
    fuse = [{"adapter": "style.safetensors", "scale": 0.5}, {"adapter": "owner/name/a/b.safetensors"}]
    entry = read_entry(write(tmp_path / "a.yaml", source="owner/name", fuse=fuse))
    fused = ((str(tmp_path / "style.safetensors"), 0.5), ("owner/name/a/b.safetensors", 1.0))
    assert entry.to_ingest() == ModelToIngest("owner/name", fuse=fused)


def test_all_that_decides_about_the_weights_is_ingested(noob: Path) -> None:
    keys = {
        "source": str(noob.with_name("noobXL.safetensors")),
        "revision": "main",
        "variant": "fp16",
        "vae": "owner/vae",
        "prediction_type": "v_prediction",
        "zero_terminal_snr": True,
        "allow_pickle": True,
        "config": str(noob.parent),
    }
    entry = read_entry(write(noob, **keys, id="x", aliases=["y"], defaults={"sampler": "Euler a"}))
    assert entry.to_ingest() == ModelToIngest(**keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^is empty; it needs the key source$"),
        ("- a", "^is not a mapping of keys$"),
        ("a: [", "^is not YAML: "),
        ("revision: 2024-02-31", "^is not YAML: day is out of range"),
        ("revision: !!int abc", "^is not YAML: "),
        ("revision: !!bool maybe", "^is not YAML: "),
        ("revision: !!timestamp x", "^is not YAML: "),
        ("revision: " + 5000 * "9", "^is not YAML: "),
        pytest.param(3000 * "[", "^is not YAML: ", id="nested"),
        pytest.param("source: " + 300 * "a" + "/b", "^source: .* cannot be looked at: File name", id="long"),
        ('source: "a\\0b"', "^source: there is no file or folder"),
        ("{}", "^source: is missing$"),
        ("sourc: x", "^sourc: unknown key; the nearest one is 'source'$"),
        (
            "{source: x/y, defaults: {samplr: a}}",
            "^defaults.samplr: unknown key; the nearest one is 'sampler'$",
        ),
        ("{source: x/y, id: a/b}", "^id: 'a/b' was given; up to 100 letters, digits and . _ - are allowed"),
        ("{source: x/y, id: 1.5}", "^id: Input should be a valid string$"),
        ("{source: x/y, defaults: {width: big}}", "^defaults.width: Input should be a valid integer"),
        ("{source: x/y, prediction_type: v}", "^prediction_type: 'v' was given; allowed are 'auto', "),
        (
            "source: nowhere.safetensors",
            "^source: there is no file or folder 'nowhere.safetensors' in /.* or in",
        ),
        ("source: /nowhere", "^source: there is no file or folder '/nowhere'$"),
        ("source: ~nobody-has-this-name/m", "^source: '~nobody-has-this-name/m' names no home folder$"),
        ("{source: x/y, vae: a.pt}", "^vae: there is no file or folder 'a.pt'"),
        ("{source: x/y, embeddings_folder: words}", "^embeddings_folder: there is no folder 'words'"),
        ("{source: x/y, config: a.yaml}", "^config: there is no folder 'a.yaml'"),
        ("{source: x/y, fuse: [{adapter: a.safetensors}]}", r"^fuse\[0\].adapter: there is no file 'a.safet"),
        ("{source: x/y, fuse: [{adapter: x/y}]}", r"^fuse\[0\].adapter: there is no file 'x/y'"),
        ("{source: x/y, fuse: [{adapter: x/y/z.safetensors, scale: .inf}]}", r"^fuse\[0\].scale: "),
        ("{source: x/y, fuse: [{adapter: x/y/z.safetensors, weight: 1}]}", "weight: unknown"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_by_its_key(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_entry(file)


def test_only_files_of_models_are_read(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", ".c.yaml", ".a.yaml.1f", "a.yaml~", "readme.md"):
        (tmp_path / name).touch()
    (tmp_path / "d.yaml").mkdir()
    assert [path.name for path in entry_files(tmp_path)] == ["a.yaml", "b.yml"]


def test_a_models_defaults_replace_the_applications_and_null_stands_for_none() -> None:
    common = DefaultsConfig(width=512, negative_prompt="blurry", guidance_scale=7)
    given = EntryDefaults.model_validate({"sampler": "Euler a", "width": None, "negative_prompt": None})
    assert effective_defaults(common, given) == DefaultsConfig(sampler="Euler a", guidance_scale=7)
    own_size = common.model_copy(update={"width": None})
    assert effective_defaults(common, EntryDefaults()) == own_size, "the application's suits another model"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler": None}, r"^defaults\.sampler: Input should be a valid string$"),
        ({"prompt_syntax": "a1111"}, r"^defaults\.negative_prompt: '\[a\|b\]' was given"),
    ],
)
def test_defaults_that_do_not_go_together_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        effective_defaults(DefaultsConfig(negative_prompt="[a|b]"), EntryDefaults.model_validate(given))


def test_each_name_has_one_owner_whichever_file_comes_first(tmp_path: Path) -> None:
    given = {
        "a": {"id": "noob"},
        "b": {"id": "b", "aliases": ["xl", "base"]},
        "c": {"id": "xl"},
        "d": {"aliases": ["d"]},
        "noob": {"id": "noob"},
        "shapes": {},
        "z": {"aliases": ["b"]},
    }
    files = [write(tmp_path / f"{name}.yaml", source="x/y", **keys) for name, keys in given.items()]
    for order in (files, files[::-1]):
        clashes = name_clashes(ModelConfig(aliases=("base",)), {file: read_entry(file) for file in order})
        assert {file.stem: clash for file, clash in clashes.items()} == {
            "a": "id: 'noob' is a name of noob.yaml",
            "b": "aliases: 'xl' is a name of c.yaml\n"
            "aliases: 'base' is a name of the default model (model.id or model.aliases)",
            "d": "aliases: 'd' is given twice",
            "shapes": "id: 'shapes' is a name of the default model (model.id or model.aliases)",
            "z": "aliases: 'b' is a name of b.yaml",
        }


def test_an_alias_never_takes_an_id(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", source="x/y", aliases=["xl"])
    other = write(tmp_path / "z.yaml", source="x/y", id="xl")
    for order in ((first, other), (other, first)):
        clashes = name_clashes(ModelConfig(), {file: read_entry(file) for file in order})
        assert clashes == {first: "aliases: 'xl' is a name of z.yaml"}


def test_folders_are_in_the_working_folder_and_the_cache_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = CatalogConfig(folder="models.d").resolved("data")
    assert resolved.folder == str(tmp_path / "models.d")
    assert resolved.cache_folder == str(tmp_path / "data" / "models")
    assert resolved.resolved("elsewhere") == resolved
    in_project = CatalogConfig(folder="models", cache_folder="~/cache").resolved("data")
    assert in_project.folder == str(PROJECT_FOLDER / "models")
    assert in_project.cache_folder == str(Path.home() / "cache")
    assert CatalogConfig().resolved("data").folder is None


def config_file(folder: Path, **args: object) -> Path:
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    return write(folder / "config.yml", applications=[application])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sourc": "x/y"}, "a.yaml: sourc: unknown key; the nearest one is 'source'"),
        ({"source": "x/y", "id": "shapes"}, "a.yaml: id: 'shapes' is a name of the default model"),
        ({"source": "x/y", "defaults": {"sampler": None}}, "a.yaml: defaults.sampler: Input should be"),
    ],
)
def test_check_names_the_file_and_the_key(keys: dict[str, object], message: str, tmp_path: Path) -> None:
    file = config_file(tmp_path, catalog={"folder": str(tmp_path / "models.d")})
    with pytest.raises(SystemExit, match=r"catalog.folder: /.*/models.d cannot be read: No such file"):
        main(["check", str(file)])
    (tmp_path / "models.d").mkdir()
    write(tmp_path / "models.d" / "a.yaml", **keys)
    with pytest.raises(SystemExit, match=f"^/.*/{message}"):
        main(["check", str(file)])
