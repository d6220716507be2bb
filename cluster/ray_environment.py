"""The environment in which Ray starts. Its workers inherit it. The container image sets the same."""

from collections.abc import MutableMapping

from serve.http.edge import ENVIRONMENT as _BEFORE_THE_PROXY

# OpenMP's threads share out an operation and wait for each other at its end. Where they spin, the one that
# waits keeps the core that the other one needs as soon as a third process wants one too. On two cores a
# picture alone, one beside a busy process, and a burst of twelve took, with two threads (benchmarks/
# results/busy-neighbour.json): 1.72 s, 2.19 s, 1.31 images/s passive; 1.77, 2.43, 1.29 as OpenMP does it by
# itself; 1.99, 7.94, 0.65 active. One thread is better for one picture (1.61 s) and worse for a burst (0.93).
# OpenMP reads this once, when a process loads it.
#
# Each replica and each handle sets Serve's gauges this often, load or not, and Ray exports them every ten
# seconds. Serve's own 100 ms are what most of an idle replica's CPU time goes to.
ENVIRONMENT = {
    **_BEFORE_THE_PROXY,
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    # Serve's proxy has 5 s to start by itself. A busy machine needs more, and would end it and begin anew.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


def set_ray_environment(environment: MutableMapping[str, str]) -> None:
    """Sets ENVIRONMENT, except for variables that are already set."""
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)


def set_run_environment(environment: MutableMapping[str, str]) -> None:
    """What `set_ray_environment` sets, and that a Ray of our own asks for a token.

    It would anyway, with a warning. Ray reads this when it is imported. A Ray that is joined has its own
    mode.
    """
    set_ray_environment(environment)
    if not environment.get("RAY_ADDRESS"):
        environment.setdefault("RAY_AUTH_MODE", "token")
