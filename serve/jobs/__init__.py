"""Durable jobs: what is accepted here is on disk first, and ends in exactly one recorded result."""
