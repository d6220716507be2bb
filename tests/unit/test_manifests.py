"""The manifests for Kubernetes against their schemas, to the last key."""

import copy
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serve.checks import check
from serve.config.app import ConfigError
from serve.config.model import PROJECT_FOLDER
from tests.overlays import KUBERAY, OVERLAYS, Manifest, manifests, ray_service, served

KUBERNETES_VERSION = "1.33"
SHARED_CRD = PROJECT_FOLDER.parent / "shared" / "kuberay-crd" / "ray.io_rayservices.yaml"


@cache
def ray_service_schema() -> Manifest:
    path = Path(os.environ.get("MIDSTEP_KUBERAY_CRD", SHARED_CRD))
    if not path.exists():
        pytest.skip("KubeRay's RayService CRD is not here; MIDSTEP_KUBERAY_CRD names the file")
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    [schema] = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    assert isinstance(schema, dict)
    forbid_unknown_keys(schema)
    return schema


def forbid_unknown_keys(schema: Any) -> None:
    """Changes the schema in place. The API server drops unknown keys; here they are errors."""
    if isinstance(schema, list):
        for item in schema:
            forbid_unknown_keys(item)
    if isinstance(schema, dict):
        for value in schema.values():
            forbid_unknown_keys(value)
        closed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
        if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(ray_service_schema())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ray_service_is_as_the_crd_has_it(overlay: str) -> None:
    validator().validate(ray_service(overlay))


def misspell(path: str) -> Callable[[Manifest], None]:
    """Adds a letter to the last key of a path."""
    *way, last = path.split(".")

    def change(manifest: Manifest) -> None:
        place: Any = manifest
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last + "s"] = place.pop(last)

    return change


@pytest.mark.parametrize(
    "path",
    [
        "spec.excludeHeadPodFromServeSvc",
        "spec.rayClusterConfig.enableInTreeAutoscaling",
        "spec.rayClusterConfig.gcsFaultToleranceOptions.redisAddress",
        "spec.rayClusterConfig.workerGroupSpecs.1.minReplicas",
        "spec.rayClusterConfig.workerGroupSpecs.0.template.spec.terminationGracePeriodSeconds",
        "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.readinessProbe.httpGet.path",
    ],
)
def test_a_misspelt_key_of_a_ray_service_is_caught(path: str) -> None:
    manifest = copy.deepcopy(ray_service("production"))
    misspell(path)(manifest)
    errors = [error.message for error in validator().iter_errors(manifest)]
    assert [error for error in errors if f"'{path.rpartition('.')[2]}s' was unexpected" in error]


def core_manifests(overlay: str) -> list[Manifest]:
    return [
        manifest
        for manifest in manifests(overlay)
        if not manifest["apiVersion"].startswith(("ray.io/", "monitoring.coreos.com/"))
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_other_manifests_are_as_kubernetes_has_them(overlay: str) -> None:
    assert core_manifests(overlay)
    for manifest in core_manifests(overlay):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("PodDisruptionBudget", "spec.minAvailable"),
        ("NetworkPolicy", "spec.podSelector"),
        ("StatefulSet", "spec.template.spec.containers.0.readinessProbe"),
    ],
)
def test_a_misspelt_key_of_another_manifest_is_caught(kind: str, path: str) -> None:
    manifest = next(manifest for manifest in manifests("production") if manifest["kind"] == kind)
    misspell(path)(manifest)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_served_is_the_file_of_the_overlay(overlay: str, tmp_path: Path) -> None:
    path = KUBERAY / "overlays" / overlay / "serve_config.yaml"
    assert ray_service(overlay)["spec"]["serveConfigV2"] == path.read_text()
    served(overlay, tmp_path)


def test_a_misspelt_key_of_what_is_served_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(ray_service("production")["spec"]["serveConfigV2"].replace("max_queue", "max_queu"))
    with pytest.raises(ConfigError, match="max_queu: unknown key; the nearest one is 'max_queue'"):
        check(path)
