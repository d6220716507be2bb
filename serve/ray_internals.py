"""Ray's unstable interfaces that Midstep uses, all in one place, each with its reason.

`pyproject.toml` keeps Ray below its next release for this. tests/unit/test_ray_internals.py lists the names.
"""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import ray
from ray import serve
from ray._common.utils import get_default_ray_temp_dir
from ray._private import worker
from ray._private.node import Node
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.actor import ActorHandle
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.serve import Deployment
from ray.serve.context import _get_global_client, _set_request_context
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema

__all__ = [
    "Node",
    "ask_replica",
    "default_temp_folder",
    "deploy",
    "deployment_of",
    "drain_node",
    "keep_calls_from_serve",
    "num_ongoing_requests",
    "replica_actor",
    "routing_stats",
    "serve_details",
    "set_request_id",
    "take_worker_logs",
]


def serve_details() -> Mapping[str, Any]:
    """The applications, deployments and replicas that Serve's controller knows.

    `serve.status()` reads the same, but also pickles a class for each deployment. That takes 37 ms of CPU
    instead of one, and slows down an ingress.
    """
    details: Mapping[str, Any] = _get_global_client().get_serve_details()
    return details


def deploy(config: ServeDeploySchema) -> None:
    """Makes Serve's controller build and deploy the applications of a configuration, as `serve run` does."""
    _get_global_client().deploy_apps(config)


def deployment_of(path: str, **options: Any) -> Deployment:
    """A deployment of the class at `package.module.Class`, which only its replicas import.

    Serve's documented decorator takes the class itself. Then torch and diffusers would also be imported where
    the application is built and where the controller runs, for ten seconds on a slow machine.
    """
    return serve.deployment(name=path.rpartition(".")[2], **options)(path)


def routing_stats(handle: DeploymentHandle) -> list[Mapping[str, Any]]:
    """What each replica said last by `record_routing_stats`, as far as the handle's router has heard."""
    router = getattr(getattr(handle, "_router", None), "_asyncio_router", None)
    router = getattr(router, "_request_router", None)
    # A copy, since Ray's thread changes it.
    return [one.routing_stats for one in list(router.curr_replicas.values())] if router else []


def replica_actor(name: str) -> ActorHandle:
    """The actor of a replica, by the `actor_name` in Serve's details. Raises ValueError if there is none.

    It asks Ray's head, so call it in a thread.
    """
    return ray.get_actor(name, namespace="serve")


async def ask_replica(actor: ActorHandle, method: str) -> Any:
    """What a method of a replica's object returns. It is called on Serve's thread, not on the object's.

    A call through a handle would wait for a place at the replica, and a full one has none. What a replica
    says by `record_routing_stats` needs no call, but Serve's controller would tell every handle of every
    change. Raises RayError.
    """
    return await actor.__ray_call__.remote(_ask, method)


def _ask(actor: Any, method: str) -> Any:
    """Runs in the replica. actor: Serve's ReplicaActor, which holds the deployment's object"""
    return getattr(actor._replica_impl._user_callable_wrapper.user_callable, method)()


def num_ongoing_requests(application: str, deployment: str) -> int:
    """The number of requests that a deployment's replicas have at the moment. Raises RayActorError."""
    replicas = serve_details()["applications"][application]["deployments"][deployment]["replicas"]
    actors = [replica_actor(replica["actor_name"]) for replica in replicas]
    # Serve's own routers make the same call.
    return sum(ray.get([actor.get_num_ongoing_requests.remote() for actor in actors]))


def take_worker_logs(take: Callable[[Mapping[str, Any]], None]) -> None:
    """Passes workers' output and Ray's own messages to `take` instead of Ray's printing. It is called on a
    thread of Ray's.

    A batch has `lines` of one process (`pid`, `ip`, `actor_name`), from its stderr if `is_err`.
    """
    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
    global_worker_stdstream_dispatcher.add_handler("midstep", take)
    # Messages of the raylets do not pass the dispatcher; Ray calls this function for them.
    worker.print_to_stdstream = lambda batch, ignore_prefix: take(batch)


def set_request_id(request_id: str) -> None:
    """Sets the id of calls that this task makes through handles, as Serve does for HTTP requests."""
    _set_request_context(request_id=request_id)


def keep_calls_from_serve() -> None:
    """Calls that this task makes through handles are from now on cancelled by itself alone.

    Serve files calls under the internal id of the HTTP request that makes them. When it cancels the request,
    it also cancels those that still look for a replica, from another thread than the one that looks. Where
    the two meet, the call is cancelled while it is given its replica, and Serve logs a traceback.
    """
    _set_request_context(_internal_request_id=uuid4().hex)


def default_temp_folder() -> str:
    """The folder where a `ray.cluster_utils.Cluster` writes its address."""
    return str(get_default_ray_temp_dir())


def drain_node(gcs_address: str, node_id: str, reason: str, deadline: float) -> None:
    """Announces that a node will be taken away, at the latest at `deadline` (seconds since the epoch).

    Raises RuntimeError if Ray refuses.
    """
    accepted, rejected = GcsClient(address=gcs_address).drain_node(
        node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), reason, int(1000 * deadline)
    )
    if not accepted:
        raise RuntimeError(f"the node cannot be drained: {rejected}")
