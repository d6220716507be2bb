"""The playground's page and files: headers, what is served, and what their HTML may hold."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from serve.http.playground.routes import FOLDER
from tests.job_stores import in_loop
from tests.unit.test_authentication import API_KEYS, serving

FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "txt": "text/plain",
}
OTHER_HOST = re.compile(rb"""(?:https?:)?//[\w.-]+\.[a-z]{2,}""")


def policy(answer: httpx.Response) -> dict[str, list[str]]:
    directives = [one.split() for one in answer.headers["content-security-policy"].split(";")]
    return {name: values for name, *values in directives}


@in_loop
async def test_the_page_and_all_its_files_are_there_without_a_key(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        for path in ("/", *(f"/playground/{name}" for name in FILES)):
            answer = await client.get(path)
            assert answer.status_code == 200, path
            suffix = path.rpartition(".")[2] if path != "/" else "html"
            assert answer.headers["content-type"].partition(";")[0] == MEDIA_TYPES[suffix]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-cache"
        assert (await client.get("/")).content == (FOLDER / "index.html").read_bytes()
        assert (await client.get("/v1/models")).status_code == 401, "its calls need one all the same"


@in_loop
async def test_the_page_may_use_nothing_of_other_hosts(tmp_path: Path) -> None:
    async with serving(tmp_path / "own", []) as client:
        allowed = policy(await client.get("/"))
        assert allowed == policy(await client.get("/playground/app.js"))
        assert allowed == {
            "default-src": ["'self'"],
            "img-src": ["'self'", "data:", "blob:"],
            "object-src": ["'none'"],
            "base-uri": ["'none'"],
            "form-action": ["'self'"],
            "frame-ancestors": ["'none'"],
        }
    async with serving(tmp_path / "elsewhere", [], presigned_urls=True) as client:
        redirected = policy(await client.get("/"))
        assert redirected["img-src"] == ["'self'", "data:", "blob:", "https:", "http:"]
        assert redirected | {"img-src": allowed["img-src"]} == allowed


@in_loop
async def test_what_a_browser_has_already_is_not_sent_again(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        for path in ("/", "/playground/app.js"):
            first = await client.get(path)
            tag = first.headers["etag"]
            for known in (tag, f"W/{tag}", f'"other", {tag}'):
                again = await client.get(path, headers={"if-none-match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
                assert policy(again) == policy(first)
            assert (await client.get(path, headers={"if-none-match": '"other"'})).content == first.content
        tags = {(await client.get(f"/playground/{name}")).headers["etag"] for name in FILES}
        assert len(tags) == len(FILES)


@in_loop
async def test_head_is_answered_like_get_without_the_file(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        for path in ("/", "/playground/style.css"):
            head, got = await client.head(path), await client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(got.content))
            assert head.headers["etag"] == got.headers["etag"]
        assert (await client.post("/")).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "",
        "vendor",
        "vendor/",
        "../routes.py",
        "..%2froutes.py",
        "%2e%2e/routes.py",
        "vendor/..%2f..%2fvendor.sh",
        "..%5croutes.py",
        "%2fetc%2fpasswd",
        "app.js%00",
        "app.js/",
        "x" * 5000,
    ],
)
@in_loop
async def test_nothing_but_the_files_of_the_folder_is_served(path: str, tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        url = httpx.URL("http://midstep").copy_with(raw_path=f"/playground/{path}".encode())
        answer = await client.get(url)
        assert (answer.status_code, answer.json()["error_type"]) == (404, "route_not_found")
        assert len(answer.json()["detail"]) < 300


@in_loop
async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS, http={"playground": False}) as client:
        for path in ("/", "/playground/app.js"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error_type"]) == (404, "route_not_found")
            assert "http.playground: false" in answer.json()["detail"]


class _Page(HTMLParser):
    """Collects what the content security policy forbids, and all addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.forbidden: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = dict(attributes)
        if tag == "style" or (tag == "script" and not names.get("src")):
            self.forbidden.append(tag)
        self.forbidden += [name for name in names if name == "style" or name.startswith("on")]
        self.addresses += [names[name] or "" for name in ("src", "href", "action") if name in names]


def test_the_html_has_no_scripts_or_styles_of_its_own_and_only_relative_addresses() -> None:
    pages = [name for name in FILES if name.endswith(".html")]
    assert pages
    for name in pages:
        page = _Page()
        page.feed((FOLDER / name).read_text())
        assert page.forbidden == []
        assert page.addresses
        for address in page.addresses:
            assert not re.match(r"/|[a-z]+:", address), f"{address} is not relative to the page"
            if (path := address.removeprefix("playground/")) != address:
                assert path in FILES


def test_no_file_names_another_host() -> None:
    """A library's own strings are its makers', and no addresses that it asks."""
    for name in FILES:
        if not name.startswith("vendor/"):
            found = set(OTHER_HOST.findall((FOLDER / name).read_bytes()))
            assert found <= {b"http://www.w3.org"}, f"{name}: {found}"


def test_modules_import_only_files_that_are_there() -> None:
    for name in FILES:
        if name.endswith(".js"):
            for imported in re.findall(
                r"""(?:from|import) ?["'](\.[^"']+)["']""", (FOLDER / name).read_text()
            ):
                path = (FOLDER / name).parent / imported
                assert path.is_file(), f"{name} imports {imported}"


def test_the_package_has_all_files_and_nothing_else() -> None:
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in patterns["serve"] for path in (root / "serve").glob(pattern)}
    assert sorted(path.relative_to(FOLDER).as_posix() for path in packed if path.is_file()) == FILES
    assert {path.suffix for path in packed if path.is_file()} == {".html", ".css", ".js", ".svg", ".txt"}
