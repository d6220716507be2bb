"""Starts a separate Ray with one application on it, until SIGTERM.

python -m benchmarks.peers.ray_host benchmarks.peers.ray_serve_batch --port 8001 --threads 2
"""

import argparse
import shutil
import signal
import sys
import tempfile
from importlib import import_module

import ray
from ray import serve

from cluster.ports import free_port


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", help="a module with build_app(num_threads)")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    # Sockets are in this folder, and their paths must stay short.
    folder = tempfile.mkdtemp(prefix="peers-", dir="/tmp")
    try:
        ray.init(
            address="local",  # never an already running one
            num_cpus=4,  # what deployments reserve; the machine may have fewer
            num_gpus=0,
            include_dashboard=False,
            _temp_dir=folder,
            _metrics_export_port=free_port(),
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # replaces the handler that Ray has just set
        serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
        serve.run(import_module(arguments.module).build_app(arguments.threads))
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
