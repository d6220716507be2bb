"""Benchmarks. Their processes, and those that they start, wait as the application's do: set before anything loads
OpenMP."""

import os

from cluster.ray_environment import set_ray_environment

set_ray_environment(os.environ)
