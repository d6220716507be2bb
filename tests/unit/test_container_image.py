"""The container image's file, checked by reading only. Nothing here builds it."""

import re

from cluster.ray_environment import ENVIRONMENT
from serve.config.model import PROJECT_FOLDER


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    lines = re.sub(r"\\\n\s*", "", (PROJECT_FOLDER / "cluster" / "Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    [base] = [value for step, value in steps if step == "FROM"]
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-\w+", base)
    [user] = [value for step, value in steps if step == "USER"]
    assert user == "1000:1000"
    assert [step for step, _ in steps].index("USER") < [step for step, _ in steps].index("COPY")
    runs = [value for step, value in steps if step == "RUN"]
    assert [run for run in runs if "pip install" in run and "--constraint constraints-sdpa.txt" in run]
    for run in runs:
        assert "pip install" not in run or "--constraint constraints-sdpa.txt" in run or "--no-deps" in run
    assert ".[otel,quantization]" in " ".join(runs)  # serve.tracing:otlp, model.quantization
    copied = [word for step, value in steps if step == "COPY" for word in value.split()[1:-1]]
    for name in copied:
        assert (PROJECT_FOLDER / name).exists()
    ignored = (PROJECT_FOLDER / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
    environment = " ".join(value for step, value in steps if step == "ENV")
    assert "PYTHONUNBUFFERED=1" in environment
    for name, value in ENVIRONMENT.items():
        assert f"{name}={value}" in environment.split()
    installed = next(run for run in runs if "dnf install" in run)
    assert {"bash", "wget"} <= set(installed.split())
