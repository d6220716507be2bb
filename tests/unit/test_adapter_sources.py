"""Adapters that requests name elsewhere: what is fetched, from whom, and how long it is kept."""

import asyncio
import hashlib
import os
from collections import Counter
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
from serve.http import adapter_sources
from serve.http.adapter_sources import AdapterSources
from serve.http.fetched_adapters import FetchedAdapters
from serve.wanted import FetchedAdapter, Wanted, WantedAdapter
from tests.adapter_folders import SHAPES, add
from tests.job_stores import in_loop


@dataclass
class Hub:
    """A hub, and other servers. files: by path; redirects: to where; asked: how often each path was"""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
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
        monkeypatch.setattr(adapter_sources, "_HUB", hub.url)
        yield hub


@asynccontextmanager
async def fetching(
    folder: Path, allow_private: bool = True, **config: Any
) -> AsyncIterator[tuple[AdapterSources, Adapters]]:
    given = {
        "folder": str(folder),
        "allow_remote": True,
        "allowed_hosts": ["127.0.0.1"],
        "cache_folder": str(folder / "cache"),
    }
    adapters = Adapters(AdaptersConfig.model_validate(given | config))
    sources = AdapterSources(adapters, allow_private)
    async with sources.running():
        yield sources, adapters


async def found(sources: AdapterSources, name: str) -> FetchedAdapter | None:
    wanted = Wanted("a star", loras=(WantedAdapter(name, 1.0, "loras.0.id"),))
    return (await sources.with_files(wanted)).loras[0].fetched


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
        assert file.name == "127.0.0.1/go", "a query may be secret"
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
            (f"{hub.url}/owner/name/resolve/v2/x.safetensors", "owner/name/x.safetensors"),
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
        ("{hub}/nowhere", "invalid_request", "answered 404"),
        ("{hub}/private", "invalid_request", "answered 401; it is not there, or needs a login"),
        ("owner/nowhere", "invalid_request", "answered 404"),
        ("{hub}/round", "invalid_request", "redirected more than 5 times"),
        ("{hub}/away", "forbidden", "not fetched from 'example.com'; allowed are 127.0.0.1"),
        ("https://example.com/x.safetensors", "forbidden", "adapters.allowed_hosts"),
        ("{hub}/page", "invalid_request", "is not a safetensors file"),
        ("{hub}/pickle", "invalid_request", "is a pickle"),
        ("{hub}/cut", "invalid_request", "is truncated"),
        ("{hub}/large", "invalid_request", "has more than 20000 bytes"),
        ("http://127.0.0.1:9/x", "invalid_request", "cannot be fetched: no connection"),
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
        assert list((tmp_path / "cache").glob("*")) == []


@in_loop
async def test_private_addresses_and_http_are_for_those_who_allow_them(tmp_path: Path) -> None:
    async with fetching(tmp_path, allow_private=False, allowed_hosts=["127.0.0.1", "example.com"]) as (
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
        os.utime(entry, (1000, 1000))
        hub.files["/x"] = add(tmp_path / "made", "y").read_bytes()
        after = await found(sources, url)
        assert before is not None
        assert after is not None
        assert before.digest != after.digest
        os.utime(entry, (1000, 1000))
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
        with adapter_sources.Download(kept.folder) as download:
            download.write(content)
            return kept.keep(name, name, download).path

    old, recent = keep("old", data), keep("recent", data + b" ")
    assert old.exists(), "it was used within a day"
    os.utime(old, (1000, 1000))
    keep("new", data + b"  ")
    assert not old.exists()
    assert recent.exists()
    assert kept.find("old") is None
    assert kept.find("recent") is not None
