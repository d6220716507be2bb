"""The environment in which Ray starts. Its workers inherit it. The container image sets the same."""

from collections.abc import MutableMapping

# Serve calls this when it is about to start an HTTP server. Named, because importing it takes the server's
# libraries, and tests and benchmarks without Ray read this module too.
EDGE = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.http.edge:middlewares"}

# OpenMP's threads share an operation and wait for each other at its end. A spinning thread keeps a core that
# the other thread needs as soon as a third process wants one too. Measured on two cores with two threads, for
# one picture alone, one beside a busy process, and a burst of twelve
# (benchmarks/results/busy-neighbour.json): 1.72 s, 2.19 s, 1.31 images/s with PASSIVE; 1.77, 2.43, 1.29 with
# OpenMP's default; 1.99, 7.94, 0.65 with ACTIVE. One thread is better for one picture (1.61 s) and worse for
# a burst (0.93). OpenMP reads this variable once, when a process loads it.
#
# Each replica and each handle sets Serve's gauges at this interval, with or without load, and Ray exports
# them every ten seconds. With Serve's own 100 ms they take most of an idle replica's CPU time.
#
# Ray's log monitor looks for new log files ten times a second while it knows fewer files than this, which
# takes more than half of its CPU time, and else twice a second.
#
# Serve's controller looks at every deployment at this interval. With Serve's own 0.1 s it takes more CPU time
# than anything else in an idle application. A replica is replaced later by at most the difference.
ENVIRONMENT = {
    **EDGE,
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Serve's proxy has 5 s to start by itself. A busy machine needs more, and would end it and begin anew.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Serve warns of replicas that take longer than 30 s to start, which a large model's do.
    "RAY_SERVE_SLOW_STARTUP_WARNING_S": "120",
}


def set_ray_environment(environment: MutableMapping[str, str]) -> None:
    """Sets ENVIRONMENT, except for variables that are already set."""
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)


def set_run_environment(environment: MutableMapping[str, str]) -> None:
    """Sets the same as `set_ray_environment`, and makes our own Ray ask for a token.

    Ray would ask for one anyway, with a warning. Ray reads this when it is imported. A joined Ray has its own
    mode.
    """
    set_ray_environment(environment)
    if not environment.get("RAY_ADDRESS"):
        environment.setdefault("RAY_AUTH_MODE", "token")
