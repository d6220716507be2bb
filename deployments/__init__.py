"""The stages as Ray Serve deployments: thin classes around `deployments.engine`."""

import gc

# Half a million objects come with torch, diffusers and Ray, and stay. Python would look among them for
# garbage whenever there are 700 new ones, and that takes a quarter of the time of those imports.
gc.set_threshold(50_000, 10, 10)
