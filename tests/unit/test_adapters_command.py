"""`midstep adapters`: what it says of files, and what it copies."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster.cli import main
from serve.checks import check_adapters, only_application
from serve.config.schema import ConfigError
from tests.adapter_folders import add

Command = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a configuration, and two files beside the adapters' folder."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, adapters={"folder": "adapters"})
    add(tmp_path, "stripes", unet_rank=4, text_rank=8, metadata={"modelspec.trigger_phrase": "zebra"})
    (tmp_path / "broken.safetensors").write_bytes(b"no adapter")
    return tmp_path


def write_config(folder: Path, **args: object) -> None:
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    (folder / "serve_config.yaml").write_text(yaml.safe_dump({"applications": [application]}))


@pytest.fixture
def adapters(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command and returns what it prints, or the error with which it ends."""

    def run(*arguments: str, error: bool = False) -> str:
        if not error:
            assert main(["adapters", *arguments]) == 0
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            main(["adapters", *arguments])
        assert ended.value.code
        return str(ended.value)

    return run


def test_a_file_is_checked_described_and_copied(folder: Path, adapters: Command) -> None:
    said = adapters("check", "stripes.safetensors")
    for words in ("can be used", "fits    shapes", "lora", "rank    4 in unet", "8 in text_encoder", "zebra"):
        assert words in said
    assert not (folder / "adapters").exists()
    assert "styles/zebra" in adapters("add", "stripes.safetensors", "--id", "styles/zebra")
    adapters("add", "stripes.safetensors", "--id", "stripes.safetensors")
    assert (folder / "adapters" / "stripes.safetensors").exists()
    copied = folder / "adapters" / "styles" / "zebra.safetensors"
    assert copied.read_bytes() == (folder / "stripes.safetensors").read_bytes()
    assert list(copied.parent.iterdir()) == [copied]
    assert "is there already" in adapters("add", "stripes.safetensors", error=True)


def test_the_list_has_those_that_cannot_be_used_too(folder: Path, adapters: Command) -> None:
    assert "There are no adapters" in adapters("list")
    adapters("add", "stripes.safetensors")
    (folder / "broken.safetensors").rename(folder / "adapters" / "broken.safetensors")
    broken, stripes = adapters("list").splitlines()
    assert stripes.split("\t")[:4] == ["stripes", "lora", "4", "8"]
    assert stripes.endswith("\tshapes")
    assert "cannot be used: is not a safetensors file" in broken
    listed = json.loads(adapters("list", "--json"))
    assert [one["id"] for one in listed] == ["broken", "stripes"]
    assert (listed[1]["ranks"], listed[1]["models"]) == ({"unet": 4, "text_encoder": 8}, ["shapes"])
    assert listed[0]["problem"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "broken.safetensors"], "broken.safetensors: is not a safetensors file"),
        (["add", "broken.safetensors"], "broken.safetensors: is not a safetensors file"),
        (["check", "nowhere"], "there is no file 'nowhere', and adapters are not fetched"),
        (["add", "stripes.safetensors", "--id", "../x"], "'../x' cannot be an id"),
        (["add", "stripes.safetensors", "--id", "a//b"], "cannot be an id"),
        (["add", "stripes.safetensors", "--id", ""], "cannot be an id"),
        (["list", "-c", "nowhere.yaml"], "nowhere.yaml: No such file"),
    ],
)
def test_what_is_wrong_is_told(folder: Path, adapters: Command, arguments: list[str], words: str) -> None:
    assert words in adapters(*arguments, error=True)
    assert not (folder / "adapters").exists()


def test_without_a_folder_the_key_is_told(folder: Path, adapters: Command) -> None:
    write_config(folder)
    assert "adapters:\n  folder: adapters" in adapters("list", error=True)
    assert "can be used" in adapters("check", "stripes.safetensors")


def test_a_configured_folder_must_be_there_when_a_server_starts(folder: Path) -> None:
    config = only_application(folder / "serve_config.yaml")
    with pytest.raises(ConfigError, match=r"adapters\.folder: .*adapters cannot be read: No such file"):
        check_adapters(config)
    (folder / "adapters").mkdir()
    check_adapters(config)


@pytest.mark.parametrize("source", ["strips.safetensors", "./dl/x", "dl/x.safetensors", "../x/y"])
def test_a_slip_in_a_files_name_asks_no_hub(folder: Path, adapters: Command, source: str) -> None:
    write_config(
        folder, adapters={"folder": "adapters", "allow_remote": True, "cache_folder": str(folder / "c")}
    )
    (folder / "adapters").mkdir()
    for command in ("add", "check"):
        assert f"there is no file '{source}'" in adapters(command, source, error=True)
