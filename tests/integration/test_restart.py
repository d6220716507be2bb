"""The whole application is killed and restarted. Every acknowledged job finishes."""

from pathlib import Path

import httpx

from tests.integration.applications import whole_application
from tests.integration.predictions import begun, create, finished, get

NUM_JOBS = 3


def test_every_acknowledged_job_finishes_after_a_restart(cost_model: Path, tmp_path: Path) -> None:
    given = {"num_inference_steps": 60, "num_outputs": 2, "deterministic": True, "seed": 1}
    jobs = {"data_folder": str(tmp_path / "data")}
    with whole_application(jobs, tmp_path / "first.log", cost_model) as first:
        client = first.client
        ids = [create(client, **given)["id"] for _ in range(NUM_JOBS)]
        begun(client, ids[0])
        assert get(client, ids[-1])["status"] != "succeeded", "there is something left to lose"
    with whole_application(jobs, tmp_path / "second.log", cost_model) as second:
        client = second.client
        pictures = set()
        for job_id in ids:
            job = finished(client, job_id)
            assert job["status"] == "succeeded", job
            # The address has changed; the path of the image has not.
            paths = [httpx.URL(url).path for url in job["output"]]
            pictures.add(tuple(client.get(path).content for path in paths))
        assert len(pictures) == 1, "the same request gives the same images, resumed or not"
