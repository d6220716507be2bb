"""Midstep's use of Ray's private parts: which and where, and whether the installed Ray has them."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private import replica

from serve import app

INTERNALS = "serve/ray_internals.py"
USED = {
    "ray._common.utils.get_default_ray_temp_dir",
    "ray._private.node.Node",
    "ray._private.worker",
    "ray._private.ray_logging.global_worker_stdstream_dispatcher",
    "ray._raylet.GcsClient",
    "ray.core.generated.autoscaler_pb2.DrainNodeReason",
    "ray.serve.context._get_global_client",
    "ray.serve.context._set_request_context",
}
GENERATED = ("ray.core.", "ray.serve.generated.")


def ray_names(path: Path) -> Iterator[str]:
    """The names of Ray that a file imports, or reaches as attributes of the module `ray`."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{name.name}" for name in names)
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.Attribute():
                yield ast.unparse(node)


def is_private(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "ray" and (name.startswith(GENERATED) or any(part.startswith("_") for part in parts))


def private_names(folder: str) -> dict[str, set[str]]:
    """Private names by file."""
    found = {
        str(path): {name for name in ray_names(path) if is_private(name)}
        for path in Path(folder).rglob("*.py")
    }
    return {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("folder", ["serve", "deployments", "cluster", "benchmarks", "models"])
def test_one_module_touches_private_parts_of_ray(folder: str) -> None:
    assert private_names(folder) == ({INTERNALS: USED} if folder == "serve" else {})


@pytest.mark.parametrize("name", sorted(USED))
def test_the_installed_ray_has_them(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_a_replica_still_holds_its_object_where_it_is_looked_for() -> None:
    """By `ask_replica`, in an instance, where the imports above do not show it."""
    assert "self._replica_impl:" in inspect.getsource(replica.ReplicaActor.__init__)
    assert "self._user_callable_wrapper =" in inspect.getsource(replica.Replica.__init__)
    assert isinstance(replica.UserCallableWrapper.user_callable, property)


@pytest.mark.parametrize("path", [app.PROMPT_ENCODER, app.DENOISER, app.VAE_DECODER, app.RUNNER])
def test_replicas_find_their_classes(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_the_application_names_its_deployments_after_their_classes() -> None:
    application = app.app
    assert application._bound_deployment.name == "Ingress"
    names = {argument._bound_deployment.name for argument in application._bound_deployment.init_args[3:]}
    assert names == {"PromptEncoder", "Denoiser", "VaeDecoder", "Runner"}
