"""What Midstep uses of Ray that Ray does not promise to keep, in one place, each with its reason.

`pyproject.toml` keeps Ray below the next release for it; tests/unit/test_ray_internals.py lists the names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import serve
from ray._common.utils import get_default_ray_temp_dir
from ray._private.node import Node
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.serve import Deployment
from ray.serve.context import _get_global_client, _set_request_context
from ray.serve.schema import ServeDeploySchema

__all__ = [
    "Node",
    "default_temp_folder",
    "deploy",
    "deployment_of",
    "drain_node",
    "num_ongoing_requests",
    "serve_details",
    "set_request_id",
    "take_worker_logs",
]


def serve_details() -> Mapping[str, Any]:
    """The applications, deployments and replicas that Serve's controller knows of.

    `serve.status()` is made of it. That pickles a class for each deployment besides: 37 ms of CPU in place of
    one, in which an ingress answers slowly.
    """
    details: Mapping[str, Any] = _get_global_client().get_serve_details()
    return details


def deploy(config: ServeDeploySchema) -> None:
    """Has Serve's controller build and deploy the applications of a configuration, as `serve run` does."""
    _get_global_client().deploy_apps(config)


def deployment_of(path: str, **options: Any) -> Deployment:
    """A deployment of the class that is at `package.module.Class`, which only its replicas import.

    Serve's documented decorator takes the class itself. Where the application is built and where the
    controller runs, torch and diffusers would be imported for nothing, for ten seconds on a slow machine.
    """
    return serve.deployment(name=path.rpartition(".")[2], **options)(path)


def num_ongoing_requests(application: str, deployment: str) -> int:
    """The requests that the replicas of a deployment have at the moment. Raises RayActorError."""
    replicas = serve_details()["applications"][application]["deployments"][deployment]["replicas"]
    actors = [ray.get_actor(replica["actor_name"], namespace="serve") for replica in replicas]
    # What Serve's own routers ask them.
    return sum(ray.get([actor.get_num_ongoing_requests.remote() for actor in actors]))


def take_worker_logs(take: Callable[[Mapping[str, Any]], None]) -> None:
    """Gives what workers print to `take`, where Ray itself would print it. It is called on a thread of Ray's.

    A batch has `lines` of one process (`pid`, `ip`, `actor_name`), of its stderr where `is_err`.
    """
    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
    global_worker_stdstream_dispatcher.add_handler("midstep", take)


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
