"""Benchmarks. OpenMP waits as in the application: the variable is set before anything loads OpenMP."""

import os

import deployments  # noqa: F401 - before diffusers, for which it sets the logs
from cluster.ray_environment import ENVIRONMENT

os.environ.setdefault("OMP_WAIT_POLICY", ENVIRONMENT["OMP_WAIT_POLICY"])
