"""Capacity: admission, estimates, rate limits, and how many replicas a stage has."""
