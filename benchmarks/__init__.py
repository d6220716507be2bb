"""Benchmarks. Whatever they run waits as the application does: set before anything loads OpenMP."""

import os

from cluster.ray_environment import ENVIRONMENT

os.environ.setdefault("OMP_WAIT_POLICY", ENVIRONMENT["OMP_WAIT_POLICY"])
