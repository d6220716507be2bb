"""The running application does what its OpenAPI document says; schemathesis makes the requests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import wait_for
from tests.integration.predictions import PROMPT, create

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
ROOT = Path(__file__).parents[2]
# Without positive_data_acceptance: the schemas do not have the configured limits, nor rules between fields.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
TIMEOUT_S = 900


def test_the_application_does_what_its_document_says(base_url: str, tmp_path: Path) -> None:
    command = [
        SCHEMATHESIS,
        "run",
        f"{base_url}/openapi.json",
        "--phases=examples,coverage,fuzzing",
        f"--checks={','.join(CHECKS)}",
        "--exclude-path=/v1/status/stream",  # it goes on for minutes
        "--max-examples=5",
        "--seed=1",
        "--request-timeout=120",
        "--continue-on-failure",
        "--warnings=off",
        "--no-color",
    ]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.integration.schemathesis_hooks"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(run.stdout[-2_000:])
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]


def test_events_of_streams_are_what_the_document_says(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    job = create(client, num_inference_steps=2)
    watched = create(client, num_inference_steps=100, num_outputs=4, num_previews=8)
    streamed = {"num_inference_steps": 4, "stream": True, "partial_images": 1}
    for method, path, url, given in (
        ("post", "/v1/images/generations", None, {"prompt": PROMPT, **streamed}),
        ("get", "/v1/predictions/{job_id}/stream", job["urls"]["stream"], None),
        ("get", "/v1/predictions/{job_id}/events", f"/v1/predictions/{watched['id']}/events", None),
    ):
        content = document["paths"][path][method]["responses"]["200"]["content"]["text/event-stream"]
        kinds = {one["properties"]["event"]["const"]: one for one in content["schema"]["oneOf"]}
        answer = client.request(method, url or path, json=given)
        sent = re.findall(r"^event: (\S+)\r?\ndata: (.*?)\r?$", answer.text, re.MULTILINE)
        assert {name for name, _ in sent} == set(kinds) - {"error"}
        for name, data in sent:
            if schema := kinds[name]["properties"]["data"].get("contentSchema"):
                whole = {**schema, "components": document["components"]}
                Draft202012Validator(whole).validate(json.loads(data))


def test_the_port_has_rays_metrics_and_its_health(client: httpx.Client, metrics_url: str) -> None:
    assert client.get("/health").text == "ok"
    client.post("/images/generations", json={"prompt": PROMPT, "num_inference_steps": 1}).raise_for_status()

    def forwards(url: str) -> set[str]:
        return {line for line in client.get(url).text.splitlines() if "midstep_forward_rows_count{" in line}

    wait_for(lambda: bool(forwards("/metrics")))
    here = client.get("/metrics")
    assert here.headers["content-type"].startswith("text/plain; version=0.0.4")
    wait_for(lambda: forwards("/metrics") == forwards(metrics_url))
    names = {family.name for family in text_string_to_metric_families(here.text)}
    assert {"ray_serve_num_http_requests", "ray_node_cpu_utilization"} <= names
