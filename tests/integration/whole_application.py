"""A separate Ray with the application on it, in one session of processes, until it is killed.

python -m tests.integration.whole_application PORT GIVEN; GIVEN: `jobs`, `api_keys` and `cost_model` as JSON
"""

import json
import os
import signal
import sys
import tempfile

import ray
from ray import serve

from cluster.ports import free_port
from cluster.ray_environment import set_ray_environment
from serve.app import build_app
from serve.config.app import AppConfig


def main() -> None:
    port, given = sys.argv[1], json.loads(sys.argv[2])
    set_ray_environment(os.environ)
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        # Sockets are in this folder, and their paths must stay short.
        _temp_dir=tempfile.mkdtemp(prefix="midstep-", dir="/tmp"),
        _metrics_export_port=free_port(),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    config = {
        "model": {"device": "cpu", "cost_model": given["cost_model"]},
        "denoiser": {"rows_per_forward": 16},
        "jobs": given["jobs"],
        "internal": {"lease_s": 4.0, "checkpoint_interval_s": 0.5},
        "api_keys": given["api_keys"],
    }
    serve.run(build_app(AppConfig.model_validate(config)))
    signal.pause()


if __name__ == "__main__":
    main()
