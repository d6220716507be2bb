"""The adapters' folder, and the adapters that requests name in it."""

import difflib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deployments.adapters.files import digest_of
from deployments.adapters.targets import ModelTargets
from deployments.engine.adapters import AdapterUse
from deployments.engine.model_source import ModelSource
from serve import adapter_files, adapter_folder
from serve import adapters as adapters_module
from serve.adapter_folder import AdapterFolder
from serve.adapter_survey import architectures, survey
from serve.adapters import Adapters
from serve.config.adapters import AdaptersConfig
from serve.errors import AdapterNotFoundError, AdapterUnusableError, MidstepError
from serve.wanted import FetchedAdapter, WantedAdapter
from tests.adapter_files import kohya, save
from tests.adapter_folders import SHAPES, add, shapes_targets


@pytest.fixture(autouse=True)
def always_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_folder, "_LOOK_INTERVAL_S", 0.0)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_ids_are_paths_without_the_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "b.safetensors", "a.v1.safetensors", "styles/stripes.safetensors", "x/y/z.safetensors")
    touch(tmp_path, ".hidden.safetensors", ".git/a.safetensors", "preview.png", "notes.txt", "x.SAFETENSORS")
    folder = AdapterFolder(tmp_path)
    assert list(folder.listing().files) == ["a.v1", "b", "styles/stripes", "x/y/z"]
    assert folder.listing().named("stripes") == ["styles/stripes"]
    assert folder.listing().named("styles/stripes.safetensors") == ["styles/stripes"]
    assert folder.listing().named("hidden") == []
    touch(tmp_path, "b.safetensors.safetensors")
    assert folder.listing().named("b.safetensors") == ["b.safetensors"], "an id comes first"


def test_files_come_and_go_and_an_unchanged_folder_is_not_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.safetensors", "styles/b.safetensors")
    folder = AdapterFolder(tmp_path)
    folder.listing()
    for path in (tmp_path, tmp_path / "styles"):  # as if nothing had changed for long
        os.utime(path, (1000, 1000))
    listing = folder.listing()
    assert folder.listing() is listing
    touch(tmp_path, "styles/c.safetensors")
    assert list(folder.listing().files) == ["a", "styles/b", "styles/c"]
    (tmp_path / "styles" / "b.safetensors").unlink()
    (tmp_path / "styles" / "c.safetensors").unlink()
    (tmp_path / "styles").rmdir()
    assert list(folder.listing().files) == ["a"]


def test_a_folder_that_is_away_keeps_what_was_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inside = tmp_path / "adapters"
    touch(inside, "a.safetensors")
    folder = AdapterFolder(inside)
    assert list(folder.listing().files) == ["a"]
    inside.rename(tmp_path / "elsewhere")
    for _ in range(2):
        assert list(folder.listing().files) == ["a"]
    assert [record.message for record in caplog.records] == [
        f"adapters.folder: {inside} cannot be read: No such file or directory; what was known of it stays"
    ]
    assert not AdapterFolder(tmp_path / "nowhere").listing().files


def test_what_is_left_out_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret, folder = tmp_path / "secret.safetensors", tmp_path / "adapters"
    touch(tmp_path, "secret.safetensors")
    touch(folder, "a.safetensors", "b.pt", "bad\nname.safetensors", "styles/c.safetensors")
    (folder / "link.safetensors").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "again.safetensors").symlink_to("a.safetensors")
    listing = AdapterFolder(folder)
    assert [list(listing.listing().files) for _ in range(2)] == [["a", "again", "styles/c"]] * 2
    messages = sorted(record.message for record in caplog.records)
    expected = {"bad": "cannot be written", "b.pt": "pickle", "link": "leads out", "up": "link to a folder"}
    assert len(messages) == len(expected)
    for name, why in expected.items():
        assert any(f"/{name}" in message and why in message for message in messages)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add(tmp_path, "styles/stripes")
    add(tmp_path, "both", unet_rank=8, text_rank=4)
    add(tmp_path, "words", unet_rank=0, text_rank=4)
    add(tmp_path, "wide", unet_rank=48)
    return tmp_path


def adapters(folder: Path | None, **config: Any) -> Adapters:
    return Adapters(AdaptersConfig(folder=None if folder is None else str(folder), max_rank=64, **config))


def wanted(*named: str | tuple[str, float] | tuple[str, float, float]) -> list[WantedAdapter]:
    all_named = [(one, 1.0) if isinstance(one, str) else one for one in named]
    return [
        WantedAdapter(name, scale, f"loras.{index}.id", *text_scale)
        for index, (name, scale, *text_scale) in enumerate(all_named)
    ]


def scales(uses: tuple[AdapterUse, ...]) -> dict[str, float]:
    return {use.adapter.name: use.scale for use in uses}


def test_adapters_are_found_by_id_and_by_file_name(folder: Path) -> None:
    found = adapters(folder).resolve(wanted(("stripes", 0.8), "styles/stripes.safetensors", "both"), SHAPES)
    assert scales(found.unet) == {"styles/stripes": pytest.approx(1.8), "both": 1.0}, "twice adds up"
    assert scales(found.text) == {"both": 1.0}
    adapter = found.unet[0].adapter
    assert (adapter.path, adapter.unet_rank) == (str(folder / "styles/stripes.safetensors"), 4)
    assert len(adapter.digest) == 64
    assert adapters(None).resolve([], SHAPES).unet == ()


def test_a_scale_of_zero_leaves_an_adapter_out(folder: Path) -> None:
    found = adapters(folder).resolve(
        wanted(("stripes", 0.0), ("both", 0.5), ("both", -0.5, 0.25), "words"), SHAPES
    )
    assert scales(found.unet) == {}
    assert scales(found.text) == {"both": 0.75, "words": 1.0}


def test_the_same_file_under_two_names_is_one_adapter(folder: Path) -> None:
    (folder / "copy.safetensors").write_bytes((folder / "both.safetensors").read_bytes())
    found = adapters(folder).resolve(wanted("both", "copy"), SHAPES)
    assert scales(found.unet) == {"both": 2.0}


def test_a_changed_file_is_read_again(folder: Path) -> None:
    offered = adapters(folder)
    before = offered.resolve(wanted("both"), SHAPES).unet[0].adapter
    add(folder, "both", unet_rank=16)
    after = offered.resolve(wanted("both"), SHAPES).unet[0].adapter
    assert (before.unet_rank, after.unet_rank) == (8, 16)
    assert before.digest != after.digest


def test_a_fetched_file_needs_no_folder(folder: Path) -> None:
    path = folder / "styles" / "stripes.safetensors"
    fetched = FetchedAdapter("owner/name/file.safetensors", path, "its digest")
    one = WantedAdapter("https://secret", 1.0, "loras.0.id", fetched=fetched)
    [use] = adapters(None, allow_remote=True).resolve([one], SHAPES).unet
    assert (use.adapter.name, use.adapter.digest) == ("owner/name/file.safetensors", "its digest")


@pytest.mark.parametrize(
    ("named", "kind", "words"),
    [
        (["strips"], "adapter_not_found", "no adapter 'strips'; did you mean 'styles/stripes'"),
        (["elephant"], "adapter_not_found", "GET /v1/adapters lists the 4 that there are"),
        (["../both"], "adapter_not_found", "there is no adapter '../both'"),
        (["/etc/passwd"], "adapter_not_found", "there is no adapter"),
        (["a" * 100_000], "adapter_not_found", "there is no adapter"),
        (
            ["wide", "both", "stripes"],
            "invalid_request",
            "48 + 8 + 4, each rounded up to a multiple of 16; t",
        ),
        (
            [("both", 60.0), ("both", 60.0)],
            "invalid_request",
            "'both' has the scale 120; allowed are -100 to",
        ),
        (["both"] * 9, "invalid_request", "9 adapters were given; at most 8 are allowed"),
    ],
)
def test_a_refusal_names_the_field(folder: Path, named: list[Any], kind: str, words: str) -> None:
    with pytest.raises(MidstepError) as refusal:
        adapters(folder).resolve(wanted(*named), SHAPES)
    assert refusal.value.code == kind
    assert refusal.value.param == "loras.0.id"
    assert refusal.value.detail.startswith("loras.0.id: ")
    assert words in refusal.value.detail
    assert len(refusal.value.detail) < 300


def test_two_files_of_one_name_need_their_ids(folder: Path) -> None:
    add(folder, "more/stripes")
    with pytest.raises(AdapterNotFoundError, match=r"name of 2 adapters; give the id: more/s.*, styles/s"):
        adapters(folder).resolve(wanted("stripes"), SHAPES)


def broken(folder: Path, name: str) -> None:
    (folder / f"{name}.safetensors").write_bytes(b"no adapter")


def too_wide(folder: Path, name: str) -> None:
    add(folder, name, unet_rank=65)


def dense(folder: Path, name: str) -> None:
    made = kohya(shapes_targets(), ["unet"])
    key = next(key for key in made if key.endswith("to_q.lora_up.weight"))
    diff = {key.replace("lora_up.weight", "diff"): made[key] @ made[key.replace("lora_up", "lora_down")]}
    save(folder / f"{name}.safetensors", diff)


def removed(folder: Path, name: str) -> None:
    (folder / f"{name}.safetensors").symlink_to("gone.safetensors")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken, "x is not a safetensors file"),
        (too_wide, "x has the rank 65; at most 64 is allowed (adapters.max_rank)"),
        (
            dense,
            "x is of a kind (full) that has no low rank and can only be fused into a model of the catalog",
        ),
        (removed, "x cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_without_its_folder(
    tmp_path: Path, make: Callable[[Path, str], None], words: str
) -> None:
    make(tmp_path, "x")
    with pytest.raises(MidstepError) as refusal:
        adapters(tmp_path).resolve(wanted("x"), SHAPES)
    assert (refusal.value.status, refusal.value.param) == (400, "loras.0.id")
    assert refusal.value.detail.startswith(f"loras.0.id: {words}")
    assert str(tmp_path) not in refusal.value.detail


def test_an_adapter_of_another_model_and_a_large_one_are_refused(
    folder: Path, model_folder: Callable[[str], Path]
) -> None:
    with pytest.raises(MidstepError, match=r"loras\.0\.id: styles/stripes") as refusal:
        adapters(folder).resolve(wanted("stripes"), ModelSource(str(model_folder("sdxl"))))
    assert refusal.value.code == "invalid_request"
    with pytest.raises(MidstepError, match=r"loras\.0\.id: styles/stripes .*bytes"):
        adapters(folder, max_gib=1e-9).resolve(wanted("stripes"), SHAPES)


def test_without_a_folder_none_are_offered() -> None:
    with pytest.raises(
        MidstepError, match=r"'stripes' was given, and adapters are not offered here"
    ) as refusal:
        adapters(None).resolve(wanted("stripes"), SHAPES)
    assert refusal.value.status == 400


def test_a_folder_with_many_files_is_listed_without_reading_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *(f"{number // 100}/{number}.safetensors" for number in range(2000)))
    with caplog.at_level(logging.WARNING):
        assert len(adapters(tmp_path).listing.files) == 2000
    assert not caplog.records


def test_of_many_ids_few_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{number // 100}/x_{number}.safetensors" for number in range(1000)))
    touch(tmp_path, "styles/stripes.safetensors")
    listing = AdapterFolder(tmp_path).listing()
    compared: list[int] = []

    def close_matches(name: str, ids: Iterable[str], **limits: Any) -> list[str]:
        compared.append(len(ids := list(ids)))
        return difflib.get_close_matches(name, ids, **limits)

    monkeypatch.setattr(adapter_folder, "get_close_matches", close_matches)
    assert listing.near("styles/stripse") == ["styles/stripes"]
    assert listing.near("0/x_1a")
    assert compared == [1, 200]


@pytest.mark.parametrize(
    ("name", "is_meant"),
    [
        ("styles/stripes", True),
        ("styles/removed", True),
        ("stlyes/stripes", True),
        ("owner/name", False),
        ("style/name.safetensors", False),
    ],
)
def test_whether_a_name_is_meant_for_the_folder(folder: Path, name: str, is_meant: bool) -> None:
    assert AdapterFolder(folder).listing().is_meant(name) is is_meant


def test_a_file_that_is_another_by_now_is_refused_if_its_digest_was_given(folder: Path) -> None:
    offered = adapters(folder)
    digest = offered.resolve(wanted("both"), SHAPES).unet[0].adapter.digest
    one = WantedAdapter("both", 1.0, "loras.0.id", sha256=digest)
    assert offered.resolve([one], SHAPES).unet[0].adapter.digest == digest
    add(folder, "both", unet_rank=16)
    with pytest.raises(
        AdapterUnusableError, match=f"its SHA-256 is [0-9a-f]{{64}}, and {digest} was given"
    ) as (refusal):
        offered.resolve([one], SHAPES)
    assert (refusal.value.status, refusal.value.param) == (422, "loras.0.id")


def test_many_who_name_a_file_read_it_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    others = threading.Barrier(4)

    def digest_of(path: Path) -> str:
        read.append(path)
        return "ab" * 32

    def resolve() -> str:
        others.wait()
        return offered.resolve(wanted("both"), SHAPES).unet[0].adapter.digest

    monkeypatch.setattr(adapter_files, "digest_of", digest_of)
    offered = adapters(folder)
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(resolve) for _ in range(4)]
    assert {one.result() for one in found} == {"ab" * 32}
    assert read == [folder / "both.safetensors"]


def test_a_file_that_is_replaced_while_it_is_read_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(path: Path) -> str:
        add(folder, "both", unet_rank=16)
        return digest_of(path)

    offered = adapters(folder)
    monkeypatch.setattr(adapter_files, "digest_of", replaced)
    with pytest.raises(MidstepError, match="both is being changed: ask for it again"):
        offered.resolve(wanted("both"), SHAPES)
    monkeypatch.setattr(adapter_files, "digest_of", digest_of)
    assert offered.resolve(wanted("both"), SHAPES).unet[0].adapter.unet_rank == 16


def test_a_models_layers_are_asked_for_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ModelSource] = []

    def targets_of_model(source: ModelSource) -> ModelTargets:
        asked.append(source)
        return shapes_targets()

    monkeypatch.setattr(adapters_module, "targets_of_model", targets_of_model)
    offered, hub = adapters(folder), ModelSource("owner/model")
    for _ in range(2):
        offered.resolve(wanted("both"), hub)
    assert asked == [hub]


def test_what_needs_no_file_is_refused_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters_module, "targets_of_model", lambda source: pytest.fail("it was asked"))
    for offered, named in ((adapters(folder), ["both"] * 9), (adapters(None), ["both"])):
        with pytest.raises(MidstepError):
            offered.resolve(wanted(*named), SHAPES)


def test_a_name_with_a_slash_may_have_been_meant_for_the_hub(folder: Path) -> None:
    with pytest.raises(
        AdapterNotFoundError, match=r"in `loras` by its URL, https://huggingface\.co/owner/name"
    ):
        adapters(folder, allow_remote=True).resolve(wanted("owner/name"), SHAPES)


def test_trigger_words_are_cut_and_of_one_line(folder: Path) -> None:
    path = add(folder, "said", metadata={"modelspec.trigger_phrase": "a\x1b[0m,\n b ," + "c" * 10_000})
    offered = adapters(folder)
    words = survey(path, offered, architectures([("shapes", "sd1", SHAPES)], offered)).trigger_words
    assert words[:2] == ["a [0m", "b"]
    assert len(words[2]) < 500
