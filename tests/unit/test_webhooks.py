"""Webhooks: what receivers get and can verify, results of attempts, and forbidden addresses."""

import asyncio
import base64
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer
from openai import InvalidWebhookSignatureError, OpenAI
from replicate.webhook import Webhooks, WebhookSigningSecret
from standardwebhooks import Webhook, WebhookVerificationError

from serve.addresses import PrivateAddressError, is_public, public_socket
from serve.errors import InvalidRequestError
from serve.jobs.webhooks import (
    MAX_ATTEMPTS,
    Delivered,
    GaveUp,
    Outcome,
    RetryIn,
    WebhookSender,
    check_secret,
    new_secret,
    retry_after_s,
    retry_delay_s,
)
from serve.outbound import check_url

SECRET = new_secret()
PAYLOAD = '{"id": "job", "status": "succeeded", "input": {"prompt": "a blue Ⓢtar"}}'.encode()


@dataclass
class Receiver:
    url: str = ""
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@asynccontextmanager
async def receiver(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None,
) -> AsyncIterator[Receiver]:
    """A server that keeps its requests."""
    receiver = Receiver()

    async def handle(request: web.Request) -> web.StreamResponse:
        receiver.received.append((dict(request.headers), await request.read()))
        return await answer(request) if answer else web.Response(status=204)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app, host="127.0.0.1") as server:
        receiver.url = str(server.make_url("/hook"))
        yield receiver


def answering(status: int, **headers: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(
            status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return answer


def sender(*secrets: str, **changes: Any) -> WebhookSender:
    return WebhookSender(secrets or (SECRET,), **({"allow_private": True} | changes))


async def attempt(url: str, number: int = 1, **changes: Any) -> Outcome:
    async with sender(**changes) as one:
        return await one.send("msg_1", url, PAYLOAD, number)


def deliver(*secrets: str) -> tuple[dict[str, str], bytes]:
    """The headers and body that a receiver gets for one message signed with these secrets."""

    async def main() -> tuple[dict[str, str], bytes]:
        async with receiver() as to, sender(*secrets) as one:
            assert await one.send("msg_1", to.url, PAYLOAD, 1) == Delivered(204)
        return to.received[0]

    return asyncio.run(main())


def answered(status: int, number: int = 1, **headers: str) -> Outcome:
    async def main() -> Outcome:
        async with receiver(answering(status, **headers)) as to:
            outcome = await attempt(to.url, number)
        assert len(to.received) == 1
        return outcome

    return asyncio.run(main())


def test_a_message_is_verified_by_the_standards_own_library() -> None:
    headers, body = deliver()
    assert Webhook(SECRET).verify(body, headers)["id"] == "job"
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, headers)


def test_a_message_is_verified_by_replicates_client() -> None:
    headers, body = deliver()
    Webhooks.validate(
        headers=headers, body=body.decode(), secret=WebhookSigningSecret(key=SECRET), tolerance=300
    )


def test_a_message_is_verified_by_openais_client() -> None:
    headers, body = deliver()
    with OpenAI(api_key="none", base_url="http://127.0.0.1") as client:
        client.webhooks.verify_signature(body, headers, secret=SECRET)
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body, headers, secret=new_secret())


def test_while_secrets_change_either_verifies() -> None:
    old, new = new_secret(), new_secret()
    headers, body = deliver(new, old)
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        Webhook(secret).verify(body, headers)
        Webhooks.validate(headers=headers, body=body.decode(), secret=WebhookSigningSecret(key=secret))
        with OpenAI(api_key="none", base_url="http://127.0.0.1") as client:
            client.webhooks.verify_signature(body, headers, secret=secret)


def test_what_is_sent_is_json_and_says_who_sends_it() -> None:
    headers, body = deliver()
    assert body == PAYLOAD
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"] == "Midstep-Webhooks"
    assert headers["webhook-id"] == "msg_1"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    assert "Cookie" not in headers


def test_cookies_are_not_kept() -> None:
    async def main() -> None:
        async with receiver(answering(200, Set_Cookie="session=1")) as to, sender() as one:
            for number in (1, 2):
                await one.send("msg_1", to.url, PAYLOAD, number)
            assert all("Cookie" not in headers for headers, _ in to.received)

    asyncio.run(main())


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(status: int) -> None:
    assert answered(status) == Delivered(status)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_failures_and_not_followed(status: int) -> None:
    async def main() -> None:
        async with receiver() as other, receiver(answering(status, Location=other.url)) as to:
            outcome = await attempt(to.url)
        assert isinstance(outcome, RetryIn)
        assert f"{status}, and redirects are not followed" in outcome.reason
        assert len(to.received) == 1
        assert other.received == []

    asyncio.run(main())


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_other_answers_are_tried_again(status: int) -> None:
    outcome = answered(status)
    assert isinstance(outcome, RetryIn)
    assert outcome.reason == f"the receiver answered {status}"
    assert 5 <= outcome.seconds <= 5.5


def test_a_receiver_that_is_gone_is_not_asked_again() -> None:
    assert answered(410) == GaveUp("the receiver answered 410: it is gone")


def test_the_receiver_says_how_long_to_wait() -> None:
    outcome = answered(503, Retry_After="120")
    assert isinstance(outcome, RetryIn)
    assert outcome.seconds == 120
    sooner = answered(503, number=3, Retry_After="1")
    assert isinstance(sooner, RetryIn)
    assert sooner.seconds >= 1800


def test_after_the_last_attempt_it_is_given_up() -> None:
    outcome = answered(500, number=MAX_ATTEMPTS, Retry_After="60")
    assert outcome == GaveUp("the receiver answered 500; that was the last of 10 attempts")


def test_attempts_go_by_the_standards_schedule() -> None:
    hours = [2, 5, 10, 14, 20, 24]
    schedule = [5, 300, 1800, *(hour * 3600 for hour in hours)]
    assert len(schedule) + 1 == MAX_ATTEMPTS
    delays = [retry_delay_s(number, Random(1)) for number in range(1, MAX_ATTEMPTS + 1)]
    assert delays[-1] is None
    for delay, nominal in zip(delays[:-1], schedule, strict=True):
        assert delay is not None
        assert nominal <= delay <= 1.1 * nominal
    assert retry_delay_s(3, Random(1)) == retry_delay_s(3, Random(1))
    assert retry_delay_s(3, Random(1)) != retry_delay_s(3, Random(2))


NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("0", 0),
        ("90", 90),
        ("99999999", 86400),
        ("9" * 5000, 86400),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("²", 0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
        (format_datetime(NOW + timedelta(days=90), usegmt=True), 86400),
        ("Fri, 20 Nov 2026 12:01:30 -0000", 90),
        ("Fri, 99 Nov 2026 12:01:30 GMT", 0),
        ("Fri, 20 Nov 999999 12:01:30 GMT", 0),
        ("Fri, 20 Nov 99999999999999999999 12:01:30 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(value: str, seconds: float) -> None:
    assert retry_after_s(value, NOW.timestamp()) == seconds


def test_a_receiver_that_does_not_answer_is_left() -> None:
    async def main() -> None:
        closing = asyncio.Event()

        async def never(_: web.Request) -> web.StreamResponse:
            await closing.wait()
            return web.Response()

        async with receiver(never) as to:
            outcome = await attempt(to.url, timeout_s=0.1)
            closing.set()
        assert isinstance(outcome, RetryIn)
        assert outcome.reason == "the receiver did not answer in time"

    asyncio.run(main())


def test_an_answer_without_an_end_is_not_read() -> None:
    async def main() -> None:
        async def endless(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(bytes(100_000))  # until the other side closes

        async with receiver(endless) as to:
            assert await attempt(to.url) == Delivered(200)

    asyncio.run(main())


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[tuple[int, list[int]]]:
    """A port, and the connections made to it."""
    connections: list[int] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer.get_extra_info("peername")[1])
        if answer:
            await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], connections


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000])
def test_what_is_no_answer_is_a_failure(answer: bytes) -> None:
    async def main() -> None:
        async with raw_server(answer) as (port, _):
            outcome = await attempt(f"http://127.0.0.1:{port}/")
        assert isinstance(outcome, RetryIn)
        assert outcome.reason.startswith("the connection broke: ")

    asyncio.run(main())


def test_plain_http_behind_https_is_a_failure() -> None:
    async def main() -> None:
        async with receiver() as to:
            outcome = await attempt(to.url.replace("http://", "https://"))
        assert isinstance(outcome, RetryIn)
        assert outcome.reason.startswith("no TLS connection: ")
        assert to.received == []

    asyncio.run(main())


def test_where_nobody_listens_it_is_a_failure() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        outcome = asyncio.run(attempt(f"http://127.0.0.1:{bound.getsockname()[1]}/"))
    assert isinstance(outcome, RetryIn)
    assert outcome.reason == "no connection: Connection refused"


class FixedResolver(AbstractResolver):
    """Gives names these addresses: each lookup uses the next list, and the last list stays."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = answers
        self.num_lookups = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answer = self._answers[min(self.num_lookups, len(self._answers) - 1)]
        self.num_lookups += 1
        if not answer:
            raise OSError("no such name")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in answer
        ]

    async def close(self) -> None:
        pass


def test_a_name_that_does_not_resolve_is_a_failure() -> None:
    outcome = asyncio.run(attempt("http://receiver.example/", resolver=FixedResolver([])))
    assert isinstance(outcome, RetryIn)
    assert outcome.reason == "the host's name does not resolve"


PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:0:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:808:808:0:0:80ff:fffe",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_names_of_private_addresses_are_not_dialled(address: str) -> None:
    """No matter how the name came to resolve to it."""
    outcome = asyncio.run(
        attempt("http://receiver.example/", allow_private=False, resolver=FixedResolver([address]))
    )
    assert isinstance(outcome, RetryIn)
    assert outcome.reason == "the host's address is not public"
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_sockets_are_for_public_addresses() -> None:
    with public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 443))) as made:
        assert made.family == socket.AF_INET
    with pytest.raises(PrivateAddressError):
        public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 443)))


def test_of_several_addresses_each_is_looked_at() -> None:
    async def main() -> None:
        async with raw_server(b"HTTP/1.1 204 No Content\r\n\r\n") as (port, connections):
            resolver = FixedResolver(["10.0.0.1", "fe80::1", "127.0.0.1"])
            outcome = await attempt(
                f"http://receiver.example:{port}/", allow_private=False, resolver=resolver
            )
        assert isinstance(outcome, RetryIn)
        assert outcome.reason == "the host's address is not public"
        assert connections == []

    asyncio.run(main())


def test_a_name_is_looked_up_for_each_message() -> None:
    """The looked-up address is the one that is checked, so rebinding gains nothing."""

    async def main() -> None:
        async with raw_server(b"") as (port, connections):
            resolver = FixedResolver(["192.168.0.1"], ["127.0.0.1"])
            async with sender(allow_private=False, resolver=resolver) as one:
                for number in (1, 2):
                    outcome = await one.send("msg_1", f"http://receiver.example:{port}/", PAYLOAD, number)
                    assert isinstance(outcome, RetryIn)
            assert resolver.num_lookups == 2
            assert connections == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "2130706433",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
    ],
)
def test_private_hosts_are_refused_at_once(host: str) -> None:
    async def main() -> None:
        async with raw_server(b"") as (port, connections):
            url = f"http://{host}:{port}/"
            with pytest.raises(InvalidRequestError) as caught:
                check_url(url, "webhook", allow_private=False)
            assert caught.value.param == "webhook"
            outcome = await attempt(url, allow_private=False)
            assert isinstance(outcome, GaveUp)
            assert outcome.reason == caught.value.detail
            assert connections == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "begins with https"),
        ("receiver.example/hook", "begins with https"),
        ("//receiver.example/hook", "begins with https"),
        ("ftp://receiver.example/", "begins with https"),
        ("javascript:alert(1)", "begins with https"),
        ("http://", "no host"),
        ("http:///hook", "no host"),
        ("http://:80/", "is not a URL|no host"),
        ("http://user@receiver.example/", "user or a password"),
        ("http://user:password@receiver.example/", "user or a password"),
        ("http://:password@receiver.example/", "user or a password"),
        ("http://receiver.example\\@127.0.0.1/", "is not a URL"),
        ("http://receiver.example:99999/", "is not a URL"),
        ("http://[::1/", "is not a URL"),
        ("http://@]", "is not a URL"),
        ("http://a b/", "white space"),
        ("http://receiver.example/\r\nx: y", "white space"),
        ("http://receiver.example/\0", "white space"),
        ("http://./", "neither a name nor"),
        ("http://a..b/", "neither a name nor"),
        (f"http://{'a' * 64}.example/", "neither a name nor"),
        (f"http://{'a.' * 127}example/", "neither a name nor"),
        ("http://a%2eb/", "neither a name nor"),
        ("http://1.2.3.4.5/", "neither a name nor"),
        ("http://134744072/", "neither a name nor"),
        (f"http://receiver.example/{'a' * 2048}", "at most 2048"),
    ],
)
def test_what_is_no_webhook_url_is_refused(url: str, words: str) -> None:
    for allow_private in (False, True):
        with pytest.raises(InvalidRequestError, match=words) as caught:
            check_url(url, "webhook", allow_private)
        assert caught.value.param == "webhook"


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.example/hook?job=1&secret=a%2Fb",
        "http://receiver.example:8080",
        "https://bücher.example/",
        "https://my_receiver.example./",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "HTTPS://RECEIVER.EXAMPLE/",
    ],
)
def test_webhook_urls_are_taken(url: str) -> None:
    assert check_url(url, "webhook", allow_private=False).scheme in {"http", "https"}


def test_private_hosts_are_taken_where_that_is_allowed() -> None:
    for host in ("127.0.0.1:8000", "localhost", "[::1]", "10.0.0.1"):
        check_url(f"http://{host}/", "webhook", allow_private=True)


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with receiver() as to, raw_server(b"") as (port, connections):
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
            assert await attempt(to.url) == Delivered(204)
            assert connections == []

    asyncio.run(main())


def test_new_secrets_are_good_ones() -> None:
    secrets = {new_secret() for _ in range(10)}
    assert len(secrets) == 10
    for secret in secrets:
        check_secret(secret)
        assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "begin with whsec_"),
        (base64.b64encode(bytes(32)).decode(), "begin with whsec_"),
        ("whsec_", "has 0"),
        ("whsec_" + base64.b64encode(bytes(16)).decode(), "has 16"),
        ("whsec_" + base64.b64encode(bytes(65)).decode(), "has 65"),
        ("whsec_secret!", "not base64"),
    ],
)
def test_bad_secrets_are_refused_and_not_repeated(secret: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        sender(secret)
    assert "secret!" not in str(caught.value)


def test_there_must_be_a_secret() -> None:
    with pytest.raises(ValueError, match="at least one"):
        WebhookSender([], allow_private=True)
