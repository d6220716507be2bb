"""Adapters that requests name elsewhere: what is fetched, from whom, and how long it is kept."""

import asyncio
import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from serve.adapters import Adapters
from serve.config.adapters import AdaptersConfig
from serve.errors import MidstepError
from serve.http import adapter_downloads, adapter_sources
from serve.http.adapter_sources import AdapterSources
from serve.http.fetched_adapters import Download, FetchedAdapters
from serve.wanted import FetchedAdapter, Wanted, WantedAdapter
from tests.adapter_folders import SHAPES, add
from tests.job_stores import in_loop

TWO_DAYS_AGO = (time.time() - 2 * 24 * 3600.0,) * 2


@dataclass
class Hub:
    """A hub, and other servers. files: by path; redirects: to where; status: of every answer, if it is not 0

    may_answer: without it /slow waits; is_asked: by path; asked: how often each path was
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    status: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    is_asked: defaultdict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    asked: Counter[str] = field(default_factory=Counter)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        self.is_asked[request.path].set()
        if request.path == "/slow":
            await self.may_answer.wait()
        if self.status:
            return web.Response(status=self.status)
        if (target := self.redirects.get(request.path)) is not None:
            return web.Response(status=302, headers={"location": target})
        if request.path == "/api/models/owner/listed":
            names = [path.removeprefix("/owner/listed/resolve/main/") for path in self.files]
            return web.json_response({"siblings": [{"rfilename": name} for name in names]})
        if (data := self.files.get(request.path)) is None:
            return web.Response(status=401 if request.path.startswith("/private") else 404)
        return web.Response(body=data)


@asynccontextmanager
async def hub_at_work(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    hub, app = Hub(), web.Application()
    app.router.add_get("/{path:.*}", hub.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        hub.url = str(server.make_url("")).rstrip("/")
        monkeypatch.setattr(adapter_downloads, "_HUB", hub.url)
        yield hub


@asynccontextmanager
async def fetching(folder: Path, **config: Any) -> AsyncIterator[tuple[AdapterSources, Adapters]]:
    given = {
        "folder": str(folder),
        "allow_remote": True,
        "allowed_hosts": ["127.0.0.1"],
        "allow_private_hosts": True,
        "cache_folder": str(folder / "cache"),
    }
    adapters = Adapters(AdaptersConfig.model_validate(given | config))
    sources = AdapterSources(adapters)
    async with sources.running():
        yield sources, adapters


async def found(sources: AdapterSources, name: str) -> FetchedAdapter | None:
    wanted = Wanted("a star", loras=(WantedAdapter(name, 1.0, "loras.0.id"),))
    return (await sources.with_files(wanted, "")).loras[0].fetched


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """The bytes of an adapter."""
    return add(tmp_path / "made", "x").read_bytes()


@in_loop
async def test_a_url_is_fetched_once_and_can_be_used(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, adapters):
        hub.files["/x.safetensors"] = data
        hub.redirects["/go"] = "/x.safetensors"
        file = await found(sources, f"{hub.url}/go?token=secret")
        assert file is not None
        assert file.name == f"{hub.url[7:]}/go", "a query may be secret"
        assert (file.path.read_bytes(), file.digest) == (data, hashlib.sha256(data).hexdigest())
        assert await found(sources, f"{hub.url}/go?token=secret") == file
        assert hub.asked["/go"] == 1
        one = WantedAdapter("x", 1.0, "loras.0.id", fetched=file)
        assert adapters.resolve([one], SHAPES).unet[0].adapter.digest == file.digest
        assert [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")] == []


@in_loop
async def test_hub_ids_and_pages_mean_the_same_file(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.files["/owner/name/resolve/main/sub dir/x.safetensors"] = data
        hub.files["/owner/name/resolve/v2/x.safetensors"] = data
        for name, shown in (
            ("owner/name/sub dir/x.safetensors", "owner/name/sub dir/x.safetensors"),
            (f"{hub.url}/owner/name/blob/main/sub%20dir/x.safetensors", "owner/name/sub dir/x.safetensors"),
            (
                f"{hub.url}/owner/name/resolve/v2/x.safetensors",
                f"{hub.url[7:]}/owner/name/resolve/v2/x.safetensors",
            ),
        ):
            file = await found(sources, name)
            assert file is not None
            assert file.name == shown


@in_loop
async def test_a_repository_has_one_file_or_a_usual_one(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):

        async def listed(*names: str) -> str:
            hub.files = {f"/owner/listed/resolve/main/{name}": data for name in names}
            try:
                file = await sources.fetch("owner/listed", f"loras.{len(hub.files)}.{names[:1]}")
            except MidstepError as error:
                return error.detail
            (tmp_path / "cache" / "places").rename(tmp_path / f"places {names[0]}")
            return file.name

        assert await listed("README.md", "style.safetensors") == "owner/listed/style.safetensors"
        usual = "pytorch_lora_weights.safetensors"
        assert await listed("a.safetensors", usual) == f"owner/listed/{usual}"
        assert "has 2 files; name one of them as owner/listed/a.safetensors: a.safe" in await listed(
            "a.safetensors", "b.safetensors"
        )
        assert "has no .safetensors file, and pickles are not taken" in await listed("a.ckpt")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("{hub}/nowhere?secret", "adapter_not_found", "/nowhere cannot be fetched: its server answered 404"),
        ("{hub}/private", "adapter_not_found", "answered 401; it is not there, or needs a login"),
        ("owner/nowhere", "adapter_not_found", "owner/nowhere cannot be fetched: its server answered 404"),
        ("{hub}/round", "invalid_request", "redirected more than 5 times"),
        ("{hub}/away", "forbidden", "not fetched from 'example.com'; allowed are 127.0.0.1"),
        ("https://example.com/x.safetensors", "forbidden", "adapters.allowed_hosts"),
        ("{hub}/page", "invalid_request", "is not a safetensors file"),
        ("{hub}/pickle", "invalid_request", "is a pickle"),
        ("{hub}/cut", "invalid_request", "is truncated"),
        ("{hub}/large", "invalid_request", "has more than 20000 bytes"),
        ("http://127.0.0.1:9/x", "adapter_unavailable", "cannot be fetched: no connection"),
        ("https://a b/", "invalid_request", "white space"),
        ("https://user:word@127.0.0.1/", "invalid_request", "must not contain a user or a password"),
    ],
)
@in_loop
async def test_what_cannot_be_fetched_is_told_and_leaves_nothing(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, name: str, code: str, words: str
) -> None:
    async with (
        hub_at_work(monkeypatch) as hub,
        fetching(tmp_path, max_gib=20_000 / 2**30) as (sources, _),
    ):
        hub.redirects |= {"/round": "/round", "/away": "https://example.com/x"}
        hub.files |= {
            "/page": b"<!doctype html>" * 10,
            "/pickle": b"PK\x03\x04\x14\x00\x08\x08" + bytes(100),
            "/cut": data[:-1],
            "/large": bytes(20_001),
        }
        with pytest.raises(MidstepError) as refusal:
            await found(sources, name.format(hub=hub.url))
        assert (refusal.value.code, refusal.value.param) == (code, "loras.0.id"), refusal.value.detail
        assert words in refusal.value.detail
        assert str(tmp_path) not in refusal.value.detail
        assert "secret" not in refusal.value.detail
        assert list((tmp_path / "cache").glob("*")) == []


@in_loop
async def test_private_addresses_and_http_are_for_those_who_allow_them(tmp_path: Path) -> None:
    async with fetching(tmp_path, allow_private_hosts=False, allowed_hosts=["127.0.0.1", "example.com"]) as (
        sources,
        _,
    ):
        with pytest.raises(MidstepError, match="not public"):
            await found(sources, "https://127.0.0.1/x")
        with pytest.raises(MidstepError, match="by https only") as refusal:
            await found(sources, "http://example.com/x")
        assert refusal.value.status == 403
    async with fetching(tmp_path, allow_remote=False) as (sources, _):
        with pytest.raises(MidstepError, match=r"adapters\.allow_remote") as refusal:
            await found(sources, "https://example.com/x")
        assert refusal.value.status == 403
        assert await found(sources, "owner/name") is None


@in_loop
async def test_a_name_in_the_folder_is_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "owner/name")
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        for name in ("owner/name", "name", "elephant", "../up", "a/b/c"):
            assert await found(sources, name) is None
        assert not hub.asked


@in_loop
async def test_what_was_kept_for_a_day_is_fetched_again_if_it_can_be(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.files["/x"] = data
        url = f"{hub.url}/x"
        before = await found(sources, url)
        [entry] = (tmp_path / "cache" / "places").iterdir()
        os.utime(entry, TWO_DAYS_AGO)
        hub.files["/x"] = add(tmp_path / "made", "y").read_bytes()
        after = await found(sources, url)
        assert before is not None
        assert after is not None
        assert before.digest != after.digest
        os.utime(entry, TWO_DAYS_AGO)
    async with fetching(tmp_path) as (sources, _):
        assert await found(sources, url) == after, "the hub is away"


@in_loop
async def test_many_who_ask_at_once_get_one_download(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.files["/x"] = data
        files = await asyncio.gather(*(found(sources, f"{hub.url}/x") for _ in range(5)))
        assert len(set(files)) == 1
        assert hub.asked["/x"] == 1


def test_files_that_were_not_used_for_long_make_room(tmp_path: Path, data: bytes) -> None:
    kept = FetchedAdapters(tmp_path / "cache", max_bytes=len(data) + 10)

    def keep(name: str, content: bytes) -> Path:
        download = Download(kept.folder)
        download.open()
        try:
            download.write(content)
            return kept.keep(name, name, download).path
        finally:
            download.close()

    old = keep("old", data)
    with pytest.raises(
        MidstepError, match=r"full of files that were used within a day \(adapters.cache_gib\)"
    ):
        keep("recent", data + b" ")
    assert old.exists()
    assert [path.name for path in kept.folder.iterdir() if path.name != "places"] == [old.name]
    assert keep("same", data) == old, "it takes no more room"
    os.utime(old, (1000, 1000))
    recent = keep("recent", data + b" ")
    assert not old.exists()
    assert recent.exists()
    assert kept.find("old") is None
    assert kept.find("recent") is not None


def test_what_dead_processes_and_forgotten_places_leave_is_swept(tmp_path: Path) -> None:
    kept = FetchedAdapters(tmp_path, max_bytes=1)
    names = (".part", ".newer", "places/.x.json.part", "places/old.json", "places/newer.json")
    (tmp_path / "places").mkdir()
    for name in names:
        (tmp_path / name).touch()
        if "newer" not in name:
            os.utime(tmp_path / name, (1000, 1000))
    kept.sweep()
    assert {name for name in names if (tmp_path / name).exists()} == {".newer", "places/newer.json"}
    FetchedAdapters(tmp_path / "nowhere", max_bytes=1).sweep()


@pytest.mark.parametrize("status", [404, 429, 500, 503])
@in_loop
async def test_a_kept_file_is_used_whatever_the_hub_answers(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.files["/x"] = data
        file = await found(sources, f"{hub.url}/x")
        [entry] = (tmp_path / "cache" / "places").iterdir()
        os.utime(entry, TWO_DAYS_AGO)
        hub.status = status
        for _ in range(2):
            assert await found(sources, f"{hub.url}/x") == file
        assert hub.asked["/x"] == 2, "it is not asked for each request"
        if status != 404:
            with pytest.raises(MidstepError, match=f"its server answered {status}") as refusal:
                await found(sources, f"{hub.url}/y")
            assert (refusal.value.code, refusal.value.status) == ("adapter_unavailable", 503)
            assert refusal.value.retry_after_s


@in_loop
async def test_who_cannot_wait_comes_again_for_the_same_download(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_sources, "_PATIENCE_S", 0.01)
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.files["/slow"] = data
        for _ in range(2):
            with pytest.raises(MidstepError, match=r"is still being fetched\. Try again in 30 s") as refusal:
                await found(sources, f"{hub.url}/slow?secret")
            assert (refusal.value.code, refusal.value.param) == ("adapter_unavailable", "loras.0.id")
            assert "secret" not in refusal.value.detail
        monkeypatch.setattr(adapter_sources, "_PATIENCE_S", 60.0)
        hub.may_answer.set()
        assert await found(sources, f"{hub.url}/slow?secret") is not None
        assert hub.asked["/slow"] == 1


@in_loop
async def test_each_who_waits_hears_of_an_error_by_its_own_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = asyncio.wait
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.status = 404

        async def answered_now(tasks: Any, **limit: float) -> Any:
            hub.may_answer.set()
            return await wait(tasks, **limit)

        monkeypatch.setattr(adapter_sources, "_PATIENCE_S", 0.01)
        with pytest.raises(MidstepError, match=f"loras: {hub.url}/slow is still being fetched"):
            await sources.fetch(f"{hub.url}/slow", "loras")
        monkeypatch.setattr(adapter_sources, "_PATIENCE_S", 60.0)
        monkeypatch.setattr(asyncio, "wait", answered_now)
        with pytest.raises(MidstepError, match=f"^input.lora: {hub.url}/slow cannot be fetched") as refusal:
            await sources.fetch(f"{hub.url}/slow", "input.lora")
        assert (refusal.value.code, refusal.value.param) == ("adapter_not_found", "input.lora")
        assert hub.asked["/slow"] == 1


@in_loop
async def test_all_adapters_of_a_request_are_fetched_at_once(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.files |= {"/slow": data, "/x": data}
        names = [f"{hub.url}/slow", f"{hub.url}/x"]
        wanted = Wanted("a star", loras=tuple(WantedAdapter(name, 1.0, "loras") for name in names))
        fetching_both = asyncio.create_task(sources.with_files(wanted, ""))
        await hub.is_asked["/x"].wait()
        hub.may_answer.set()
        assert len((await fetching_both).loras) == 2


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ((9 << 20).to_bytes(8, "little"), "is not a safetensors file"),
        (b"PK\x03\x04\x14\x00\x08\x08", "is a pickle"),
    ],
)
@in_loop
async def test_what_its_first_bytes_refuse_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, words: str
) -> None:
    written: list[int] = []
    monkeypatch.setattr(Download, "write", lambda self, chunk: written.append(len(chunk)))
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.files["/x"] = start + bytes(1000)
        with pytest.raises(MidstepError, match=words):
            await found(sources, f"{hub.url}/x")
    assert not written


@in_loop
async def test_a_slip_in_a_folders_id_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, "styles/stripes")
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        for name in ("styles/strpes", "styles/removed", "stlyes/stripes", "other/x.safetensors"):
            assert await found(sources, name) is None
        assert not hub.asked
        with pytest.raises(MidstepError):
            await found(sources, "owner/name")
        assert hub.asked


@in_loop
async def test_a_name_with_control_characters_is_refused(tmp_path: Path) -> None:
    async with fetching(tmp_path) as (sources, _):
        with pytest.raises(MidstepError, match="has a name with control characters"):
            await found(sources, "owner/name/a\nb.safetensors")


@in_loop
async def test_a_file_that_another_process_has_deleted_makes_no_error(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "cache" / "gone.safetensors"
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / gone.name])
    async with hub_at_work(monkeypatch) as hub, fetching(tmp_path) as (sources, _):
        hub.files["/x"] = data
        assert await found(sources, f"{hub.url}/x") is not None
