"""Servers that a user might pick instead of Midstep, with the same weights, loaded side by side.

    python -m benchmarks.peers     runs all of them

Each answers `POST /v1/images/generations` as Midstep does and runs the same stock diffusers pipeline. Each is
set up as its own documentation recommends, with its best settings.
"""
