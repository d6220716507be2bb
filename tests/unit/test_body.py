"""Bodies on arrival: compressed, with a byte order mark, too large."""

import gzip

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from serve.errors import MidstepError
from serve.http.body import bounded_body
from serve.http.limits import MAX_BODY_BYTES
from serve.http.problems import on_midstep_error
from tests.unit.test_departures import Refused

BODY = b'{"prompt": "a star"}'


@pytest.fixture
def client() -> TestClient:
    async def echo(request: Request) -> Response:
        return Response(await bounded_body(request))

    routes = [Route("/", echo, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers={MidstepError: on_midstep_error})
    app.state.refused = Refused()
    return TestClient(app)


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, identity"])
def test_a_compressed_body_is_refused_in_a_sentence(client: TestClient, encoding: str) -> None:
    answer = client.post("/", content=gzip.compress(BODY), headers={"content-encoding": encoding})
    assert (answer.status_code, answer.json()["error_type"]) == (415, "unsupported_content_encoding")
    assert (
        answer.json()["detail"]
        == f"Content-Encoding: {encoding!r} was given. Bodies are taken uncompressed only."
    )


def test_a_compressed_body_is_noticed_where_nothing_says_so(client: TestClient) -> None:
    answer = client.post("/", content=gzip.compress(BODY))
    assert answer.status_code == 415
    assert answer.json()["detail"] == "The body is gzip. Bodies are taken uncompressed only."


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_byte_order_mark_is_overlooked(client: TestClient, encoding: str) -> None:
    headers = {"content-encoding": encoding}
    assert client.post("/", content=b"\xef\xbb\xbf" + BODY, headers=headers).content == BODY
    assert client.post("/", content=BODY, headers=headers).content == BODY


def test_a_body_that_is_too_large_is_refused(client: TestClient) -> None:
    assert client.post("/", content=b" " * MAX_BODY_BYTES).status_code == 200
    answer = client.post("/", content=b" " * (MAX_BODY_BYTES + 1))
    assert (answer.status_code, answer.json()["error_type"]) == (413, "body_too_large")
