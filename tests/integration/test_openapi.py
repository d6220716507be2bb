"""schemathesis against the running application: what fits its OpenAPI document is answered as that says, and so
is what nearly fits it."""

import os
import subprocess
import sys
from pathlib import Path

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
# Without positive_data_acceptance: the limits of the configuration, and what fields have to do with one another,
# are in no schema.
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
TIMEOUT_S = 300


def test_the_application_does_what_its_document_says(base_url: str, tmp_path: Path) -> None:
    command = [
        SCHEMATHESIS,
        "run",
        f"{base_url}/openapi.json",
        "--phases=examples,coverage,fuzzing",
        f"--checks={','.join(CHECKS)}",
        "--max-examples=10",
        "--seed=1",
        "--request-timeout=120",
        "--continue-on-failure",
        "--warnings=off",
        "--no-color",
    ]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.integration.schemathesis_hooks"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    assert "No issues found" in run.stdout
