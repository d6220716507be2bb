"""The manifests for KubeRay as a whole: who may reach whom, what fits where, and what survives."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from ray.autoscaler._private.kuberay.autoscaling_config import _get_custom_resources
from ray.scripts.scripts import drain_node

from serve.config.internal import STAGE_DRAIN_TIMEOUT_S
from serve.config.limits import MAX_DEADLINE_S
from serve.config.model import PROJECT_FOLDER
from tests.overlays import OVERLAYS, Manifest, container, of_kind, pod_groups, ray_service, selected, served
from tests.promql import RULES


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cluster_is_the_one_that_was_meant(overlay: str) -> None:
    cluster = ray_service(overlay)["spec"]["rayClusterConfig"]
    pins = (PROJECT_FOLDER / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in pod_groups(overlay).values():
        environment = {item["name"]: item["value"] for item in container(group)["env"]}
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert environment["RAY_SERVE_HAPROXY_RETRY_ON"].split() == ["conn-failure", "empty-response"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_confined_and_probed_and_its_image_pinned(overlay: str) -> None:
    images = set()
    for group in pod_groups(overlay).values():
        spec, only = group["template"]["spec"], container(group)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"readinessProbe", "livenessProbe", "resources"} <= set(only)
        images.add(only["image"])
    [image] = images  # Ray must be the same everywhere
    assert re.search(r":\d+\.\d+\.\d+$", image)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stream_may_outlive_a_change_of_replicas(overlay: str) -> None:
    for group in pod_groups(overlay).values():
        environment = {item["name"]: item["value"] for item in container(group)["env"]}
        assert int(environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) >= MAX_DEADLINE_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_from_outside_only_http_can_be_reached(overlay: str) -> None:
    policies = of_kind(overlay, "NetworkPolicy").values()
    assert selected(overlay, {"matchLabels": {"app.kubernetes.io/part-of": "midstep"}}) == set(
        pod_groups(overlay)
    )
    for_everybody = []
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        for rule in policy["spec"]["ingress"]:
            if "from" not in rule:
                for_everybody.append((selected(overlay, policy["spec"]["podSelector"]), rule["ports"]))
    workers = set(pod_groups(overlay)) - {"head"}
    assert for_everybody == [(workers, [{"protocol": "TCP", "port": 8000}])]
    config = yaml.safe_load(ray_service(overlay)["spec"]["serveConfigV2"])
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert config["proxy_location"] == "EveryNode"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_finds_the_port_of_http_on_the_head(overlay: str) -> None:
    config = yaml.safe_load(ray_service(overlay)["spec"]["serveConfigV2"])
    for group in pod_groups(overlay).values():
        ports = {item["name"]: item["containerPort"] for item in container(group)["ports"]}
        assert ports["serve"] == config["http_options"]["port"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_replicas_fit_on_the_workers(overlay: str, tmp_path: Path) -> None:
    config = served(overlay, tmp_path)
    shares = config.num_gpus()
    cpus = config.jobs.num_cpus * config.jobs.num_runners
    cpus += sum(stage.num_cpus * stage.max_replicas for stage in (*config.stages.values(), config.ingress))
    gpus = sum(shares[name] * stage.max_replicas for name, stage in config.stages.items())
    have = {"cpu": 0, "nvidia.com/gpu": 0}
    for name, group in pod_groups(overlay).items():
        limits = container(group)["resources"]["limits"]
        tolerated = [toleration["key"] for toleration in group["template"]["spec"].get("tolerations", [])]
        assert ("nvidia.com/gpu" in limits) == ("nvidia.com/gpu" in tolerated)
        if name != "head":
            for resource in have:
                have[resource] += int(limits.get(resource, 0)) * group["maxReplicas"]
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert cpus <= have["cpu"]
    assert gpus <= have["nvidia.com/gpu"]
    assert (config.model.device == "cuda") == (have["nvidia.com/gpu"] > 0)


def test_what_needs_no_gpu_keeps_no_pod_with_one(tmp_path: Path) -> None:
    config = served("production", tmp_path)
    groups = pod_groups("production")
    resources = {
        name: _get_custom_resources({}, group["rayStartParams"], name) for name, group in groups.items()
    }
    assert [name for name in groups if "cpu_worker" in resources[name]] == ["cpu"]
    reserved = config.ingress.resources["cpu_worker"] * config.ingress.max_replicas
    reserved += config.jobs.resources["cpu_worker"] * config.jobs.num_runners
    assert reserved <= resources["cpu"]["cpu_worker"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_asks_for_no_gpu_has_none_to_give(overlay: str) -> None:
    """A container that asks for no GPU may still see all GPUs of its machine."""
    for group in pod_groups(overlay).values():
        asked = "nvidia.com/gpu" in container(group)["resources"]["limits"]
        assert group["rayStartParams"].get("num-gpus") == (None if asked else "0")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_hangs_is_not_drained(overlay: str) -> None:
    for group in pod_groups(overlay).values():
        assert container(group)["livenessProbe"]["terminationGracePeriodSeconds"] <= 10


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_jobs_on_a_disk_are_for_one_pod_only(overlay: str, tmp_path: Path) -> None:
    jobs = served(overlay, tmp_path).jobs
    workers = [group for name, group in pod_groups(overlay).items() if name != "head"]
    one_pod = sum(group["maxReplicas"] for group in workers) == 1
    assert one_pod == (jobs.database_url is None) == (jobs.object_store_url is None)


def test_a_budget_leaves_a_pod_that_may_go_in_every_group() -> None:
    budgets = of_kind("production", "PodDisruptionBudget").values()
    groups = pod_groups("production")
    budgeted = set()
    for budget in budgets:
        [name] = selected("production", budget["spec"]["selector"])
        assert type(budget["spec"]["minAvailable"]) is int
        assert 1 <= budget["spec"]["minAvailable"] < groups[name]["minReplicas"]
        budgeted.add(name)
    assert budgeted == {"gpu", "cpu"}


def pre_stop(group: Manifest) -> list[str]:
    command: list[str] = container(group)["lifecycle"]["preStop"]["exec"]["command"]
    return command


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_that_goes_gives_its_work_away_first(overlay: str, tmp_path: Path) -> None:
    ingress_s = served(overlay, tmp_path).ingress.drain_timeout_s
    assert ingress_s != "auto", "it must not be longer than the pods have"
    margin_s = 10
    groups = pod_groups(overlay)
    *_, head_sleep_s = pre_stop(groups["head"])
    for name, group in groups.items():
        grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert int(head_sleep_s) < grace_s
        if name == "head":
            continue
        *_, script = pre_stop(group)
        drain, sleep = script.split("; ")
        command, reason = drain.split(" ray drain-node ")
        answer_s, deadline_s, sleep_s = (int(part.split()[-1]) for part in (command, reason, sleep))
        assert max(ingress_s, STAGE_DRAIN_TIMEOUT_S) + margin_s <= deadline_s < sleep_s
        assert answer_s + sleep_s <= int(head_sleep_s)  # all pods of a cluster stop at once, the head last
        assert "ray stop" not in script


@pytest.mark.parametrize("outcome", ["exit 0", "exit 1", "kill -KILL $$"])
def test_a_pod_that_goes_stays_though_nobody_answers_its_drain(outcome: str, tmp_path: Path) -> None:
    for name, script in {"ray": outcome, "sleep": f'echo "$@" >> {tmp_path}/slept'}.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)
    command = pre_stop(pod_groups("production")["gpu"])
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert (tmp_path / "slept").read_text() == command[-1].split()[-1] + "\n"


def test_ray_knows_the_options_of_the_drain() -> None:
    help_text = CliRunner().invoke(drain_node, ["--help"]).output
    *_, script = pre_stop(pod_groups("production")["gpu"])
    _, drain = script.split("; ")[0].split(" ray drain-node ")
    options = re.findall(r"--[a-z-]+", drain)
    assert len(options) == 3
    for option in options:
        assert option in help_text
    assert re.findall(r"DRAIN_NODE_REASON_[A-Z]+", drain)[0] in help_text


def test_the_state_of_the_head_is_in_the_redis_that_comes_with_it() -> None:
    options = ray_service("production")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    [service] = of_kind("production", "Service").values()
    [redis] = of_kind("production", "StatefulSet").values()
    name, port = options["redisAddress"].split(":")
    assert service["metadata"]["name"] == name
    assert [item["port"] for item in service["spec"]["ports"]] == [int(port)]
    assert service["spec"]["selector"].items() <= redis["spec"]["template"]["metadata"]["labels"].items()
    [password] = [
        item["valueFrom"]["secretKeyRef"]
        for item in container(redis["spec"])["env"]
        if item["name"] == "REDIS_PASSWORD"
    ]
    assert password == options["redisPassword"]["valueFrom"]["secretKeyRef"]


def test_prometheus_finds_every_pod_and_may_reach_it() -> None:
    monitored: set[str] = set()
    for monitor in of_kind("production", "PodMonitor").values():
        names = selected("production", monitor["spec"]["selector"])
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        for name in names:
            ports = {
                item["name"]: item["containerPort"]
                for item in container(pod_groups("production")[name])["ports"]
            }
            assert ports[endpoint["port"]] == 8080
        monitored |= names
    assert monitored == set(pod_groups("production"))
    policy = of_kind("production", "NetworkPolicy")["midstep-metrics"]
    assert selected("production", policy["spec"]["podSelector"]) == monitored
    [rule] = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8080}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_where_prometheus_is_told_of_the_pods_it_is_told_of_the_rules(overlay: str) -> None:
    objects = of_kind(overlay, "PrometheusRule").values()
    assert bool(objects) == bool(of_kind(overlay, "PodMonitor"))
    for rule in objects:
        assert rule["spec"] == yaml.safe_load(RULES.read_text())


def test_no_secret_is_written_down_and_every_one_is_documented(tmp_path: Path) -> None:
    assert not of_kind("production", "Secret")
    text = (PROJECT_FOLDER / "docs" / "kubernetes.md").read_text()
    created = {
        name: set(re.findall(r"--from-literal=(\w+)=", options))
        for name, options in re.findall(r"create secret generic ([\w-]+)((?:.*\\\n)*.*)", text)
    }
    jobs = served("production", tmp_path).jobs
    given = [jobs.database_url, jobs.object_store_url, *jobs.webhook_secrets]
    assert all(value is not None and value.startswith("env:") for value in given)
    [named] = {json.dumps(container(group)["envFrom"]) for group in pod_groups("production").values()}
    assert json.loads(named) == [{"secretRef": {"name": "midstep"}}]
    assert {str(value).removeprefix("env:") for value in given} <= created["midstep"]
    assert "password" in created["midstep-redis"]
