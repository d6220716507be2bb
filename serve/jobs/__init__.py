"""Durable jobs: an accepted job is on disk first, and ends in exactly one recorded result."""
