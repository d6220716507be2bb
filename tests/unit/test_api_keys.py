"""API keys: whose key is whose, and which configurations are refused."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cluster.cli import main
from serve.checks import check
from serve.clients import EVERYBODY, Client, Clients
from serve.config.api_keys import KEY_PREFIX, key_sha256, new_key
from serve.config.app import AppConfig, ConfigError
from serve.errors import InvalidApiKeyError

ALICE, ALICE_NEW, BOB = "mst_alice", "mst_alice_new", "mst_bob"


def one(name: str, key: str, limit: float | None = None) -> dict[str, object]:
    return {"name": name, "key_sha256": key_sha256(key), "device_seconds_per_minute": limit}


def clients(*api_keys: dict[str, object]) -> Clients:
    return Clients(AppConfig.model_validate({"api_keys": api_keys}).api_keys)


@pytest.mark.parametrize(
    ("authorization", "client"),
    [
        (f"Bearer {ALICE}", Client("alice", 60)),
        (f"bearer  {ALICE} ", Client("alice", 60)),
        (f"Token {BOB}", Client("bob")),
        (f"Bearer {ALICE_NEW}", Client("alice", 60)),
    ],
)
def test_a_key_is_its_clients(authorization: str, client: Client) -> None:
    known = clients(one("alice", ALICE, 60), one("bob", BOB), one("alice", ALICE_NEW, 60))
    assert known.of(authorization) == client


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE.upper()}",
        f"Bearer {ALICE} {BOB}",
        f"Bearer {key_sha256(ALICE)}",
        "Bearer \xe4\x00",
    ],
)
def test_no_other_key_is_taken(authorization: str | None) -> None:
    with pytest.raises(InvalidApiKeyError) as refusal:
        clients(one("alice", ALICE), one("bob", BOB)).of(authorization)
    assert refusal.value.status == 401
    assert ALICE not in refusal.value.detail


def test_without_keys_everybody_is_one_client() -> None:
    assert clients().of(None) == clients().of("Bearer anything") == EVERYBODY


@pytest.mark.parametrize(
    ("api_keys", "message"),
    [
        ([{"key_sha256": "0" * 64}], r"api_keys\[0\]\.name: is missing"),
        ([one("alice", ALICE), {"name": "bob"}], r"api_keys\[1\]\.key_sha256: is missing"),
        ([one("alice", ALICE) | {"key_sha256": "abc"}], r"api_keys\[0\]\.key_sha256: String should match"),
        (
            [one("alice", ALICE) | {"key_sha256": new_key()}],
            r"api_keys\[0\]\.key_sha256: this is a key itself",
        ),
        ([one("", ALICE)], r"api_keys\[0\]\.name: String should match"),
        ([one("two\nlines", ALICE)], r"api_keys\[0\]\.name: String should match"),
        ([one("line\n", ALICE)], r"api_keys\[0\]\.name: String should match"),
        ([one("alice", ALICE, 0)], r"api_keys\[0\]\.device_seconds_per_minute: .* greater than 0"),
        ([{"nam": "alice"}], r"api_keys\[0\]\.nam: unknown key; the nearest one is 'name'"),
        (
            [one("alice", ALICE), one("bob", BOB), one("carol", ALICE)],
            r"api_keys\[2\]\.key_sha256: api_keys\[0\] has the same one",
        ),
        (
            [one("alice", ALICE, 60), one("alice", ALICE_NEW)],
            r"api_keys\[1\]\.device_seconds_per_minute: None is not the 60\.0 of api_keys\[0\]",
        ),
    ],
)
def test_a_wrong_section_is_named(api_keys: list[dict[str, object]], message: str, tmp_path: Path) -> None:
    application = {"import_path": "serve.app:build_app", "args": {"api_keys": api_keys}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    with pytest.raises(ConfigError, match=message):
        check(path)
    with pytest.raises(ValidationError):
        AppConfig.model_validate(application["args"])


def test_what_the_command_line_prints_lets_its_key_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for _ in range(2):
        main(["key", "alice"])
        printed = capsys.readouterr().out
        [key] = [line for line in printed.splitlines() if line.startswith(KEY_PREFIX)]
        assert printed.count(key) == 1
        keys.add(key)
        config = AppConfig.model_validate(yaml.safe_load(printed[printed.index("api_keys:") :]))
        assert Clients(config.api_keys).of(f"Bearer {key}") == Client("alice")
    assert len(keys) == 2


def test_the_command_line_refuses_what_cannot_be_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"NAME: .*'two words' was given"):
        main(["key", "two words"])
