"""Mutated requests over raw sockets, because HTTP libraries refuse to send most of them.

The index of a request and the seed determine its bytes. python -m tests.fuzz INDEX shows one.
"""

import asyncio
import copy
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

_SEED = 20
_CONCURRENCY = 16
# How long a client waits. If the server takes a request for unfinished, it waits too.
_ANSWER_TIMEOUT_S = 120.0
_MAYBE_UNFINISHED_S = 1.0
_LEAVES_AFTER_S = 0.05

IMAGES, JOBS, FILES = "/v1/images/generations", "/v1/predictions", "/v1/files"
TXT2IMG = "/sdapi/v1/txt2img"
# Requests that are accepted in spite of their mutations take one step.
_IMAGE = {"prompt": "a star", "num_inference_steps": 1, "size": "128x128", "n": 1, "seed": 1}
_JOB = {"version": "shapes", "input": {"prompt": "a star", "num_inference_steps": 1, "seed": 1}}
_BODIES: list[tuple[str, dict[str, Any]]] = [
    (IMAGES, _IMAGE),
    (IMAGES, _IMAGE | {"stream": True, "partial_images": 1}),
    (IMAGES, _IMAGE | {"prompt": "a <lora:x:1> star", "prompt_syntax": "a1111", "loras": ["x", {"id": "y"}]}),
    (IMAGES, _IMAGE | {"deadline_s": 30.0, "deterministic": True, "sampler": "Heun", "priority": 1}),
    (JOBS, _JOB),
    ("/v1/models/midstep/shapes/predictions", {"input": _JOB["input"]}),
    (JOBS, {"version": "shapes", "input": {"prompt": "a", "lora_weights": "owner/name", "lora_scale": 1}}),
    (
        TXT2IMG,
        {"prompt": "a (star:1.2)", "steps": 1, "width": 128, "height": 128, "seed": 1, "tiling": False},
    ),
    (JOBS, _JOB | {"webhook": "http://127.0.0.1:9/", "webhook_events_filter": ["completed"]}),
]
_PATHS = [
    IMAGES,
    JOBS,
    f"{JOBS}/0123456789abcdef0123456789",
    f"{JOBS}/0123456789abcdef0123456789/cancel",
    f"{JOBS}/0123456789abcdef0123456789/stream",
    f"{JOBS}?cursor=abc",
    "/v1/models",
    "/v1/models/shapes",
    "/v1/models/midstep/shapes/versions/1",
    "/sdapi/v1/options",
    "/sdapi/v1/progress?skip_current_image=x",
    "/v1/adapters",
    "/v1/adapters/styles/stripes",
    "/v1/adapters?cursor=abc",
    FILES,
    f"{FILES}/",
    f"{FILES}/0123456789abcdef0123456789",
    f"{FILES}/0123456789abcdef0123456789/download?expiry=1&owner=a&signature=abc",
    f"{FILES}?cursor=before-1",
    f"{FILES}/predictions/0123456789abcdef0123456789/stream?owner=a&signature=b",
    f"{FILES}/images/a/0-aaaaaaaaaaaaaaaaaaaaaa.png",
    "/v1/account",
    "/v1/hardware",
    "/v1/webhooks/default/secret",
    "/livez",
    "/predictions/0123456789abcdef0123456789",
    "/openapi.json",
    "/docs/start.js",
    "/-/routes",
    "/",
]
_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="content"; filename="a.png"\r\nContent-Type: image/png\r\n'
    b'\r\nbytes\r\n--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{"a": 1}\r\n--b--\r\n'
)
_FORM_TYPES = [
    b"multipart/form-data; boundary=b",
    b"multipart/form-data; boundary=b; charset=utf-16",
    b"multipart/form-data; boundary=b; charset=undefined",
    b'multipart/form-data; boundary="',
    b"multipart/form-data",
]
_METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "BREW"]
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    -(2**64),
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    0.1,
    "",
    "a" * 70_000,
    "\x00",
    "\ud800",
    "a\u2028b\x1b[31m\r\nforged",
    "1024x1024",
    "-1x0",
    "url",
    7.0,
    [],
    {},
    [[[[]]]],
    {"a": {"b": "c"}},
    ["start", "nothing"],
    "http://169.254.169.254/",
    "gopher://x",
    "<lora:../../etc/passwd:nan>",
    ["../x", {"id": "x", "scale": 1e308}],
]
_HEADERS = [
    "x-request-id",
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
    "x-session-id",
    "authorization",
    "prefer",
    "cancel-after",
    "idempotency-key",
    "content-encoding",
    "content-type",
    "last-event-id",
    "range",
    "if-none-match",
    "if-range",
    "expect",
    "upgrade",
    "connection",
    "host",
    "x-forwarded-for",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "content-length",
    "accept",
]
_HEADER_VALUES = [
    b"",
    b"0",
    b"-1",
    b"0.001",
    b"?1",
    b"\xff\xfe",
    b"\x00",
    b"a\tb",
    b"\xe2\x80\xa8forged",
    b"a" * 60_000,
    b"wait=5",
    b"wait=99999999999999999999",
    b"gzip",
    b"chunked",
    b"bytes=0-",
    b"bytes=9-1",
    b"100-continue",
    b"websocket",
    b"Bearer \xff",
    b"1h1h",
    b'"quoted"',
    b"99999999999999999999-1",
    b"text/event-stream",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
]
_OF_CONNECTIONS = {b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
_TRASH = [
    b"\x00",
    b"\xff",
    b"\r\n",
    b"\n\n",
    b"{",
    b"}",
    b'"',
    b"\\u",
    b"\\",
    b"[" * 2000,
    b"\xef\xbb\xbf",
    b"%",
    b" ",
]


@dataclass(frozen=True)
class FuzzedRequest:
    """patience_s: how long its client waits; is_whole: whether it must be answered"""

    data: bytes
    patience_s: float = _ANSWER_TIMEOUT_S
    is_whole: bool = True


@dataclass
class Outcome:
    """Results of many requests. wrong: requests with a forbidden answer or none"""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def fuzzed(index: int) -> FuzzedRequest:
    random = Random(f"{_SEED}-{index}")
    path, body, of_body = _content(random)
    method = "POST" if body and random.random() < 0.9 else random.choice(_METHODS)
    target = _mutated_target(random, path)
    framed, framing, is_whole = _framed(random, body)
    others = [
        (_mutated(random, random.choice(_HEADERS).encode(), 0.05), random.choice(_HEADER_VALUES))
        for _ in range(random.choice([0, 0, 1, 1, 2, 5]))
    ]
    headers = [(b"host", b"127.0.0.1"), (b"connection", b"close"), *framing, *of_body, *others]
    random.shuffle(headers)
    written = method.encode() + b" " + target + b" HTTP/1.1\r\n"
    written += b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n"
    head = _mutated(random, written, 0.1)
    data = head + framed
    if random.random() < 0.05:
        # Mutations may have left nothing.
        return FuzzedRequest(data[: random.randrange(len(data) or 1)], _LEAVES_AFTER_S, is_whole=False)
    if not is_whole or head != written or any(name in _OF_CONNECTIONS for name, _ in others):
        return FuzzedRequest(data, _MAYBE_UNFINISHED_S, is_whole=False)
    return FuzzedRequest(data)


def _content(random: Random) -> tuple[str, bytes, list[tuple[bytes, bytes]]]:
    """A path, a body, and the headers about it."""
    if random.random() < 0.4:
        return random.choice(_PATHS), b"", []
    if random.random() < 0.1:
        content_type = random.choice([*_FORM_TYPES, *_FORM_TYPES[:1] * 5])
        return FILES, _mutated(random, _FORM, 0.7), [(b"content-type", content_type)]
    path, body = random.choice(_BODIES)
    body = copy.deepcopy(body)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        _mutate_field(random, body)
    text = json.dumps(body).encode()
    return path, _mutated(random, text, 0.3), []


def _mutate_field(random: Random, body: dict[str, Any]) -> None:
    inner = body["input"] if isinstance(body.get("input"), dict) and random.random() < 0.7 else body
    name = random.choice(
        [*inner, "unknown", "", "model", "response_format", "image", "steps", "width", "user", "loras"]
    )
    if random.random() < 0.15:
        inner.pop(name, None)
    else:
        inner[name] = random.choice(_VALUES)


def _mutated(random: Random, data: bytes, chance: float) -> bytes:
    """The data with some bytes changed, removed or doubled, each with that chance."""
    if random.random() >= chance or not data:
        return data
    start = random.randrange(len(data))
    end = min(len(data), start + random.choice([0, 1, 1, 3, 20]))
    before, within, after = data[:start], data[start:end], data[end:]
    return random.choice(
        [
            before + random.randbytes(len(within)) + after,
            before + random.choice(_TRASH) + after,
            before + after,
            before + within + within + after,
            before,
            gzip.compress(data),
        ]
    )


def _mutated_target(random: Random, path: str) -> bytes:
    target = path.encode()
    if random.random() < 0.15:
        part = random.choice(
            [b"%ff", b"%00", b"%0d%0aforged", b"..", b"//", b"a" * 5000, b"?a=%ff&cursor=%00", b"#", b"*"]
        )
        at = random.randrange(len(target) + 1)
        target = target[:at] + part + target[at:]
    return _mutated(random, target, 0.05)


def _framed(random: Random, body: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bool]:
    """The body in its wire form, its headers, and whether the headers promise exactly this body."""
    length = [(b"content-length", b"%d" % len(body))]
    match random.choice(["plain"] * 12 + ["chunked"] * 3 + ["long", "short", "bad chunk", "half chunk"]):
        case "chunked":
            cut = random.randrange(len(body) + 1)
            return _chunks(body[:cut], body[cut:]) + b"0\r\n\r\n", [(b"transfer-encoding", b"chunked")], True
        case "bad chunk":
            return b"zz\r\n" + body, [(b"transfer-encoding", b"chunked")], True
        case "half chunk":
            return _chunks(body), [(b"transfer-encoding", b"chunked")], False
        case "long":
            return body, [(b"content-length", b"%d" % (len(body) + 10))], False
        case "short" if body:
            return body, [(b"content-length", b"%d" % (len(body) // 2))], True
        case _:
            return body, length if body else [], True


def _chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)


async def send_all(host: str, port: int, indices: Iterator[int]) -> Outcome:
    """Sends each request once, a few at a time."""
    outcome = Outcome()

    async def send_some() -> None:
        for index in indices:
            request = fuzzed(index)
            status, problem = await _ask(host, port, request)
            outcome.statuses[status] += 1
            if problem:
                outcome.wrong.append(f"{index}: {problem}")

    await asyncio.gather(*(send_some() for _ in range(_CONCURRENCY)))
    return outcome


async def _ask(host: str, port: int, request: FuzzedRequest) -> tuple[str, str]:
    """The status of the answer, and what is wrong with it, or nothing."""
    reader, writer = await asyncio.open_connection(host, port)
    answer = b""
    try:
        with suppress(ConnectionError):  # refused early, or answered and closed
            writer.write(request.data)
            await writer.drain()
            async with asyncio.timeout(request.patience_s):
                while part := await reader.read(65536):
                    answer += part
    except TimeoutError:
        if request.is_whole:
            return "none", f"no end after {request.patience_s} s of {answer[:200]!r}"
        if not answer:
            return "left", ""
    finally:
        writer.close()
    return _judged(answer)


def _judged(answer: bytes) -> tuple[str, str]:
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        return "closed", ""
    status = answer[9:12].decode("latin-1")
    head, _, body = answer.partition(b"\r\n\r\n")
    come_again = status == "503" and b"retry-after:" in head.lower()
    too_late = status == "504" and b"urn:midstep:deadline_exceeded" in body  # one of _BODIES asks for this
    if status.startswith("5") and not (come_again or too_late):
        return status, repr(answer[:400])
    if status.startswith("4") and body and b"application/problem+json" not in head:
        return status, f"not a problem: {answer[:400]!r}"
    return status, ""


if __name__ == "__main__":
    print(fuzzed(int(sys.argv[1])))
