"""The cache among several processes, after deaths, and when it is full."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.ingestion import ingest as ingestion
from deployments.ingestion.cache import GRACE_S
from deployments.ingestion.ingest import Cache, IngestionError, ModelToIngest, ingest, known
from deployments.ingestion.process import ingest_in_process
from tests import ldm_files, tiny_models

Folder = Callable[[str], Path]
ROOT = Path(__file__).parents[2]
# A process that dies, or waits for ever, when the second part has been written.
STOPS = """
import os, sys, time
from pathlib import Path
from deployments.ingestion import building
from deployments.ingestion.ingest import ModelToIngest, ingest
check = building._check
def stop(part, tensors, dtype):
    if part.architecture.part == "vae":
        print("now", flush=True)
        time.sleep(60)
    return check(part, tensors, dtype)
building._check = stop
ingest(ModelToIngest(sys.argv[1]), Path(sys.argv[2]))
"""


def num_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "parts").rglob("*") if path.is_file())


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_death_leaves_nothing_half_done(model_folder: Folder, tmp_path: Path) -> None:
    source, cache = str(model_folder("sd1")), tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS, source, str(cache)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "now\n"
        process.kill()
        process.wait()
    [left] = (cache / "staging").iterdir()
    assert list((left / "parts").iterdir()), "it died in the middle"
    assert not (cache / "models").exists()
    assert not (cache / "parts").exists()
    assert known(ModelToIngest(source), cache) is None

    assert ingest(ModelToIngest(source), cache).is_dir()
    assert not list((cache / "staging").iterdir()), "the next one removes what is left"


def test_leftovers_of_dead_processes_are_removed_at_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("dead", "deleted-1f", "alive"):
        (cache / "staging" / name / "parts").mkdir(parents=True)
    with Cache(cache).locked("alive"):
        Cache(cache).shrink(0, [])
    assert [path.name for path in (cache / "staging").iterdir()] == ["alive"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"digest": 1}', "{}", 100_000 * "["], ids=range(6))
def test_a_damaged_entry_of_the_index_goes(model_folder: Folder, tmp_path: Path, content: str) -> None:
    model, cache = ModelToIngest(str(model_folder("sd1"))), tmp_path / "cache"
    folder = ingest(model, cache)
    [entry] = (cache / "index").iterdir()
    entry.write_text(content)
    assert known(model, cache) is None
    assert Cache(cache).shrink(0, [folder]) == []
    assert not entry.exists()
    assert ingest(model, cache) == folder


async def follow(model: ModelToIngest, cache: Path) -> tuple[Path, list[str]]:
    """The folder, and what was done for it."""
    seen: list[str] = []
    return await ingest_in_process(model, cache, on_progress=lambda what, share: seen.append(what)), seen


def test_several_processes_do_it_once(model_folder: Folder, tmp_path: Path) -> None:
    model, cache = ModelToIngest(str(model_folder("sdxl"))), tmp_path / "cache"

    async def both() -> list[tuple[Path, list[str]]]:
        return await asyncio.gather(follow(model, cache), follow(model, cache))

    done = asyncio.run(both())
    assert {folder for folder, _ in done} == {known(model, cache)}
    assert sum("looking" in seen for _, seen in done) == 1, "the other one found it, or waited for it"
    assert len(list((cache / "models").iterdir())) == 1


def test_one_that_waits_finds_what_the_other_has_built(model_folder: Folder, tmp_path: Path) -> None:
    model, cache = ModelToIngest(str(model_folder("sd1"))), tmp_path / "cache"
    seen: list[str] = []
    other = threading.Thread(
        target=ingest, args=(model, cache), kwargs={"progress": lambda what, _: seen.append(what)}
    )
    store = Cache(cache)
    with store.locked(ingestion.source_key(model)):
        other.start()
        while not seen:
            time.sleep(0.01)
    other.join()
    assert seen[0] == "waiting for another process"
    assert known(model, cache) is not None


def test_a_process_tells_why_it_refuses(tmp_path: Path) -> None:
    path = ldm_files.save(tmp_path / "m.safetensors", {"decoder.conv_in.weight": torch.zeros(1)})
    with pytest.raises(IngestionError, match=f"^{path} is a VAE alone"):
        asyncio.run(ingest_in_process(ModelToIngest(str(path)), tmp_path / "cache"))


def test_a_process_that_is_cancelled_ends_and_cleans_up(model_folder: Folder, tmp_path: Path) -> None:
    model, cache = ModelToIngest(str(model_folder("sd1"))), tmp_path / "cache"

    async def cancel() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(ingest_in_process(model, cache, on_progress=lambda *_: started.set()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not list((cache / "staging").glob("*"))
    with Cache(cache).locked(ingestion.source_key(model), on_wait=lambda: pytest.fail("its process lives")):
        pass


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(IngestionError, match="cannot be ingested: its process ended with status 1"):
        asyncio.run(ingest_in_process(ModelToIngest("/m.safetensors"), tmp_path / "cache"))


def test_a_long_line_of_the_log_does_not_stop_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar of progress writes no ends of lines."""
    script = tmp_path / "python"
    lines = ("#!/bin/sh", r"head -c 3000000 /dev/zero | tr '\0' x >&2", "echo >&2", "echo why >&2", "exit 3")
    script.write_text("\n".join(lines))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(IngestionError, match=r"ended with status 3: x+ \| why$"):
        asyncio.run(ingest_in_process(ModelToIngest("/m.safetensors"), tmp_path / "cache"))


def test_a_full_cache_loses_the_least_recently_used(model_folder: Folder, tmp_path: Path) -> None:
    """sd1 and sd2 share their VAE and tokenizer, so only the U-Net goes with the first of them."""
    cache, store = tmp_path / "cache", Cache(tmp_path / "cache")
    families = ("sd1", "sd2", "sdxl")
    models = [ModelToIngest(str(model_folder(family))) for family in families]
    folders = [ingest(model, cache) for model in models]
    assert store.shrink(0, []) == [], "what was used lately stays in any case"
    for number, folder in enumerate(folders):
        age(folder, GRACE_S + 1000.0 - number)
    assert store.shrink(num_bytes(cache), []) == []

    known(models[0], cache)  # used again, so sd2 is the oldest now
    assert store.shrink(num_bytes(cache) - 1, []) == [folders[1]]
    assert known(models[1], cache) is None
    assert known(models[0], cache) == folders[0]
    age(folders[0], GRACE_S + 1000.0)
    assert store.shrink(0, keep=[folders[0]]) == [folders[2]]
    used = {path.name for path in (cache / "parts").iterdir()}
    assert used == {link.readlink().name for link in folders[0].iterdir() if link.is_symlink()}
    assert len(list((cache / "index").iterdir())) == 1

    assert ingest(models[1], cache) == folders[1], "it comes again"
    for folder in folders[:2]:
        age(folder, GRACE_S + 1000.0)
    store.shrink(0, [])
    assert store.num_bytes() == num_bytes(cache) == 0


def test_parts_behind_links_count_for_what_has_changed(model_folder: Folder, tmp_path: Path) -> None:
    source, real = tiny_models.copy(model_folder("sd1"), tmp_path / "m"), tmp_path / "real"
    (source / "unet").rename(real)
    (source / "unet").symlink_to(real)
    before = ingestion.source_key(ModelToIngest(str(source)))
    (real / "diffusion_pytorch_model.safetensors").touch()
    assert ingestion.source_key(ModelToIngest(str(source))) != before


def test_a_source_that_changes_while_it_is_read_is_refused(model_folder: Folder, tmp_path: Path) -> None:
    source = tiny_models.copy(model_folder("sd1"), tmp_path / "m")
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"

    def change(what: str, share: float) -> None:
        if what == "checking vae":
            weights.touch()

    with pytest.raises(IngestionError, match="changed while it was read; it is tried again"):
        ingest(ModelToIngest(str(source)), tmp_path / "cache", progress=change)
    assert not list((tmp_path / "cache").glob("models/*"))
    assert ingest(ModelToIngest(str(source)), tmp_path / "cache").is_dir()


@pytest.mark.parametrize("loss", ["removed", "cut off"])
def test_a_damaged_part_is_built_anew(model_folder: Folder, tmp_path: Path, loss: str) -> None:
    model, cache = ModelToIngest(str(model_folder("sd1"))), tmp_path / "cache"
    folder = ingest(model, cache)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    if loss == "removed":
        weights.unlink()
    else:
        os.truncate(weights, 1000)
    assert known(model, cache) is None
    assert ingest(model, cache) == folder
    assert weights.read_bytes() == content


def test_a_part_may_vanish_while_another_model_takes_it(
    model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Existing parts are linked, so that a cache that shrinks does not take them from a new model."""
    cache = tmp_path / "cache"
    store = Cache(cache)
    first = ingest(ModelToIngest(str(model_folder("sd1"))), cache)
    commit = Cache.commit

    def shrink_first(*given: Any) -> Path:
        age(first, GRACE_S + 1000.0)
        assert store.shrink(0, []) == [first]
        return commit(*given)

    monkeypatch.setattr(Cache, "commit", shrink_first)
    folder = ingest(ModelToIngest(str(model_folder("sd2"))), cache)
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    assert known(ModelToIngest(str(model_folder("sd2"))), cache) == folder


def test_a_cache_that_cannot_be_written(model_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(IngestionError, match=r"cannot be ingested into .*cache: .*Not a directory"):
        ingest(ModelToIngest(str(model_folder("sd1"))), tmp_path / "cache")


def test_what_only_looks_needs_no_torch() -> None:
    code = (
        "import sys, deployments.ingestion.ingest, deployments.ingestion.process; "
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
