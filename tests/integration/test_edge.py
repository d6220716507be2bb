"""What clients can do to a whole application: headers, leaving early; and the death of an ingress replica."""

import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from tests.integration.conftest import Metric, replica, settled, wait_for
from tests.integration.predictions import ROUTE as PREDICTIONS
from tests.integration.predictions import begun, body, create, finished

ROUTE = "/v1/images/generations"
LONG = {"prompt": "a star", "num_inference_steps": 100, "sampler": "Heun", "size": "256x256"}
NewLines = Callable[[], str]


@pytest.fixture
def new_lines(head: dict[str, Any]) -> NewLines:
    """Reads the lines that Serve's processes have logged since."""
    folder = Path(head["RayletSocketName"]).parents[1] / "logs" / "serve"
    sizes = {path: path.stat().st_size for path in folder.glob("*.log")}

    def read() -> str:
        return "".join(path.read_text()[sizes.get(path, 0) :] for path in folder.glob("*.log"))

    return read


def raw(base_url: str, data: bytes, leaves: bool = False) -> bytes:
    host, port = base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(data)
        answer = b""
        while not leaves and (part := connection.recv(65536)):
            answer += part
        return answer


def get(base_url: str, *headers: bytes) -> bytes:
    lines = [b"GET /livez HTTP/1.1", b"host: x", b"connection: close", *headers, b"", b""]
    return raw(base_url, b"\r\n".join(lines))


@pytest.mark.parametrize(
    "name",
    [
        b"x-request-id",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"x-session-id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
    ],
)
def test_headers_need_not_be_text(base_url: str, name: bytes) -> None:
    assert get(base_url, name + b": \xff").startswith(b"HTTP/1.1 200 OK")


def test_what_is_no_http_is_refused_by_our_protocol(base_url: str) -> None:
    """The same protocol closes connections with half a header: tests/unit/test_connections.py."""
    answer = raw(base_url, b"GET / HTTP/1.1\r\nhost: x\r\nx-\xff: 1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n")


def test_a_request_id_that_is_unfit_for_a_log_is_in_none(base_url: str, new_lines: NewLines) -> None:
    for unfit in (b"a" * 60_000, b"a\tforged", "a\u2028forged".encode()):
        answer = get(base_url, b"x-request-id: " + unfit)
        [made] = re.findall(rb"x-request-id: (\S+)\r\n", answer)
        assert re.fullmatch(rb"[0-9a-f]{32}", made)
    assert b"x-request-id: mine-1\r\n" in get(base_url, b"x-request-id: mine-1")
    wait_for(lambda: "mine-1" in new_lines())
    assert "forged" not in new_lines()
    assert len(new_lines()) < 20_000


def test_clients_give_no_orders_to_the_proxy(base_url: str, client: httpx.Client, metric: Metric) -> None:
    count = "ray_midstep_forward_requests_count"
    soon = {"x-request-timeout-seconds": "0.3"}
    streamed = client.post(
        ROUTE, json={"prompt": "a star", "num_inference_steps": 20, "stream": True}, headers=soon
    )
    assert "event: image_generation.completed" in streamed.text
    before = settled(metric, count)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(base_url + ROUTE, json=LONG, headers={"x-request-disconnect-disabled": "?1"}, timeout=1.0)
    wait_for(lambda: metric("ray_midstep_denoising_requests") == 0)
    assert settled(metric, count) - before < 199, "it does not run to its end"


def test_leaving_is_no_fault(base_url: str, client: httpx.Client, new_lines: NewLines) -> None:
    """Clients leave streams of both dialects and the middle of a body. One in six caused a traceback once."""
    job = create(client, num_inference_steps=100, scheduler="Heun", width=256, height=256)
    begun(client, job["id"])
    for _ in range(15):
        with client.stream("POST", ROUTE, json=LONG | {"stream": True, "partial_images": 3}) as answer:
            assert answer.status_code == 200
        with client.stream("GET", f"{PREDICTIONS}/{job['id']}/stream") as answer:
            next(answer.iter_lines())
        half = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode()
        raw(base_url, half, leaves=True)
    client.post(f"{PREDICTIONS}/{job['id']}/cancel")
    wait_for(lambda: "disconnected, cancelling request" in new_lines())
    assert "Traceback" not in new_lines()
    assert "internal_error" not in new_lines()


def test_an_ingress_that_dies_loses_nothing_that_can_be_done_again(
    client: httpx.Client, metric: Metric, new_lines: NewLines
) -> None:
    def stream() -> list[str]:
        wanted = LONG | {"stream": True, "partial_images": 3}
        with client.stream("POST", ROUTE, json=wanted) as answer:
            return list(answer.iter_lines())

    with ThreadPoolExecutor(3) as pool:
        plain = pool.submit(client.post, ROUTE, json={**LONG, "num_inference_steps": 30})
        streamed = pool.submit(stream)
        waiting = pool.submit(
            client.post, PREDICTIONS, json=body(num_inference_steps=100), headers={"prefer": "wait=30"}
        )
        wait_for(lambda: metric("ray_midstep_denoising_requests") >= 2)
        time.sleep(1.0)
        ray.kill(replica("Ingress"), no_restart=True)
        answer = plain.result()
        assert answer.status_code == 200, answer.text
        lines = [line for line in streamed.result() if line.startswith("data: ")]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
        lost = waiting.result()
    assert lost.status_code == 503
    assert lost.headers["content-type"] == "application/problem+json"
    assert lost.headers["retry-after"] == "1"
    assert "once more" in new_lines()
    [newest, *_] = client.get(PREDICTIONS).json()["results"]
    assert finished(client, newest["id"])["status"] == "succeeded", (
        "only the answer was lost, and not the job"
    )
