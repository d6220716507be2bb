"""Tests. OpenMP waits in them as in the application; the variable is set before anything loads OpenMP."""

import os

from cluster.ray_environment import set_ray_environment

set_ray_environment(os.environ)
