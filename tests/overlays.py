"""The overlays of cluster/kuberay, rendered like `kubectl apply -k`, and their parts."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.checks import check
from serve.config.app import AppConfig
from serve.config.model import PROJECT_FOLDER

KUBERAY = PROJECT_FOLDER / "cluster" / "kuberay"
OVERLAYS = ("dev", "gpu", "production")
# KubeRay sets these labels on its pods in addition to those of the templates.
HEAD_LABELS = {"ray.io/node-type": "head", "ray.io/group": "headgroup"}
WORKER_LABELS = {"ray.io/node-type": "worker"}

Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> str:
    kustomize = [["kubectl", "kustomize"], ["kustomize", "build"]]
    found = [command for command in kustomize if shutil.which(command[0])]
    if not found:
        pytest.skip("neither kubectl nor kustomize is here to render the overlays with")
    command = [*found[0], str(KUBERAY / "overlays" / overlay)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def manifests(overlay: str) -> list[Manifest]:
    return list(yaml.safe_load_all(rendered(overlay)))


def ray_service(overlay: str) -> Manifest:
    [manifest] = [manifest for manifest in manifests(overlay) if manifest["kind"] == "RayService"]
    return manifest


def of_kind(overlay: str, kind: str) -> dict[str, Manifest]:
    return {
        manifest["metadata"]["name"]: manifest for manifest in manifests(overlay) if manifest["kind"] == kind
    }


def pod_groups(overlay: str) -> dict[str, Manifest]:
    """The head and the worker groups by name."""
    cluster = ray_service(overlay)["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]} | workers


def container(group: Manifest) -> Manifest:
    [only] = group["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def labels(name: str, group: Manifest) -> dict[str, str]:
    own = HEAD_LABELS if name == "head" else WORKER_LABELS | {"ray.io/group": name}
    return group["template"]["metadata"]["labels"] | own


def selected(overlay: str, selector: Manifest) -> set[str]:
    """The groups whose pods match a selector that has only matchLabels."""
    assert set(selector) == {"matchLabels"}
    wanted = selector["matchLabels"].items()
    return {name for name, group in pod_groups(overlay).items() if wanted <= labels(name, group).items()}


def served(overlay: str, folder: Path) -> AppConfig:
    """The configuration that an overlay serves, read from its RayService."""
    path = folder / "serve_config.yaml"
    path.write_text(ray_service(overlay)["spec"]["serveConfigV2"])
    [config] = check(path)
    return config
