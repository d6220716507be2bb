"""The environment that Ray is started in here; its workers inherit it. The container image sets the same."""

from collections.abc import MutableMapping

from serve.http.edge import ENVIRONMENT as _BEFORE_THE_PROXY

# OpenMP's threads share out an operation and wait for each other at its end. Where they spin, the one that
# waits keeps the core that the other one needs as soon as a third process wants one too. In one run of
# benchmarks/busy_neighbour.py on two cores a burst of twelve pictures was made at 0.70 images/s so, and at
# 1.25 with threads that sleep; one picture alone took 1.44 and 1.92 s. In an earlier sitting a picture beside
# one busy process took ten times as long. OpenMP reads this once, when a process loads it.
ENVIRONMENT = {**_BEFORE_THE_PROXY, "OMP_WAIT_POLICY": "PASSIVE"}


def set_ray_environment(environment: MutableMapping[str, str]) -> None:
    """Sets ENVIRONMENT, but for what is set already."""
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)
