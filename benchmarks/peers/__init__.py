"""The servers that a user would pick instead of Midstep, with the same weights, loaded side by side.

    python -m benchmarks.peers     runs all of it

Each answers `POST /v1/images/generations` as Midstep does, runs the same stock diffusers pipeline, and is set
up as its own documentation recommends, at the best settings that it has.
"""
