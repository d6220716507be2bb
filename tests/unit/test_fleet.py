"""The fleet, from what Serve's controller says."""

from typing import Any

from serve.calls.fleet import Fleet, Replicas

STAGES = {"denoiser": "Denoiser", "runner": "Runner"}


def details(route: str | None = "/", **states: list[str]) -> dict[str, Any]:
    """states: of the replicas of each deployment"""
    deployments = {
        name: {
            "replicas": [
                {"replica_id": f"{name}{index}", "actor_name": f"the actor of {name}{index}", "state": state}
                for index, state in enumerate(of_replicas)
            ]
        }
        for name, of_replicas in states.items()
    }
    return {"applications": {"app": {"route_prefix": route, "deployments": deployments}}}


def fleet() -> Fleet:
    return Fleet("app", STAGES, "Ingress", "Ingress0")


def test_it_assumes_one_of_each_until_it_has_looked() -> None:
    seen = fleet()
    assert seen.replicas == dict.fromkeys(("ingress", *STAGES), Replicas(running=1))
    assert not seen.is_leaving


def test_replicas_by_state_and_the_actors_of_those_that_take_requests() -> None:
    seen = fleet()
    states = ["RUNNING", "STARTING", "STOPPING", "UPDATING", "STOPPED", "STARTING"]
    seen.see(details(Ingress=["RUNNING"], Denoiser=states, Runner=[]))
    actors = {"Denoiser0": "the actor of Denoiser0", "Denoiser3": "the actor of Denoiser3"}
    assert seen.replicas["denoiser"] == Replicas(2, starting=2, stopping=1, actors=actors)
    assert seen.denoisers_per_ingress() == 2
    assert not seen.has_replica("runner")


def test_a_deployment_that_serve_has_forgotten_keeps_its_last_number() -> None:
    seen = fleet()
    seen.see(details(Ingress=["RUNNING"], Denoiser=["RUNNING"] * 3, Runner=["RUNNING"]))
    seen.see(details(Ingress=["RUNNING"]))
    assert seen.replicas["denoiser"].running == 3


def test_this_ingress_is_leaving_when_it_stops_or_gets_no_more_requests() -> None:
    seen = fleet()
    for given, is_leaving in (
        (details(Ingress=["STARTING"]), False),
        (details(Ingress=["RUNNING", "STOPPING"]), False),
        (details(Ingress=["STOPPING", "RUNNING"]), True),
        (details(Ingress=["RUNNING"]), False),
        (details(Ingress=["RUNNING"], route=None), True),
        (details(Ingress=[]), True),
        (details(), True),
        ({"applications": {}}, True),
    ):
        seen.see(given)
        assert seen.is_leaving == is_leaving, given
