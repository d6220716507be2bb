"""A Ray cluster on this machine, whose nodes claim to have any number of GPUs."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

from cluster.ports import free_port
from cluster.ray_environment import set_ray_environment
from serve.ray_internals import Node, default_temp_folder, drain_node

_HOST = "127.0.0.2"  # not 127.0.0.1, which Ray replaces by this machine's outside address
_HEAD_CPUS = 8  # Ray reserves shares of these; the processes share this machine's CPUs
_OBJECT_STORE_BYTES = 512 * 2**20  # of the head, where requests come in and pictures go out


class LocalCluster:
    """A cluster whose GPU nodes come and go. The head stays and has no GPU."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self, num_gpus: int, num_cpus: int) -> Node:
        return self._cluster.add_node(num_gpus=num_gpus, num_cpus=num_cpus, node_ip_address=_HOST)

    def kill(self, node: Node) -> None:
        """Kills all processes of a node at once, as a power failure would."""
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Node, reason: str, deadline: float) -> None:
        """Announces that a node will be taken away. deadline: the latest time, in seconds since the epoch"""
        drain_node(self.address, node.node_id, reason, deadline)


@contextmanager
def local_cluster(metrics_port: int | None = None) -> Iterator[LocalCluster]:
    """A cluster with only a head at first. This process is connected to it. metrics_port: of the head"""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # everything listens on this machine only
    set_ray_environment(os.environ)
    os.makedirs(default_temp_folder(), exist_ok=True)  # a Cluster writes its address there
    # Sockets live below it, and their paths must stay short.
    folder = tempfile.mkdtemp(prefix="midstep-", dir="/tmp")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": _HEAD_CPUS,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "node_ip_address": _HOST,
            "include_dashboard": False,
            "dashboard_port": free_port(),  # Ray looks whether it is free all the same
            "temp_dir": folder,
            "metrics_export_port": metrics_port,
            "_system_config": {"metrics_report_interval_ms": 500},
        },
    )
    try:
        ray.init(
            address=cluster.address,
            _node_ip_address=_HOST,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        yield LocalCluster(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
