"""What Midstep uses of Ray that Ray does not promise to keep, in one place, each with its reason.

`pyproject.toml` keeps Ray below the next release for it; tests/unit/test_ray_internals.py lists the names.
"""

from collections.abc import Mapping
from typing import Any

from ray._common.utils import get_default_ray_temp_dir
from ray._private.node import Node
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.serve.context import _get_global_client, _set_request_context

__all__ = ["Node", "default_temp_folder", "drain_node", "serve_details", "set_request_id"]


def serve_details() -> Mapping[str, Any]:
    """The applications, deployments and replicas that Serve's controller knows of.

    `serve.status()` is made of it. That pickles a class for each deployment besides: 37 ms of CPU in place of
    one, in which an ingress answers slowly.
    """
    details: Mapping[str, Any] = _get_global_client().get_serve_details()
    return details


def set_request_id(request_id: str) -> None:
    """Gives the calls that this task makes through handles an id, as Serve does for HTTP requests."""
    _set_request_context(request_id=request_id)


def default_temp_folder() -> str:
    """The folder where a `ray.cluster_utils.Cluster` writes its address."""
    return str(get_default_ray_temp_dir())


def drain_node(gcs_address: str, node_id: str, reason: str, deadline: float) -> None:
    """Announces that a node is going to be taken away, at the latest at `deadline` (seconds since the epoch).

    Raises RuntimeError where Ray refuses.
    """
    accepted, rejected = GcsClient(address=gcs_address).drain_node(
        node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), reason, int(1000 * deadline)
    )
    if not accepted:
        raise RuntimeError(f"the node cannot be drained: {rejected}")
