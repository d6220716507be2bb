"""Capacity: admission, estimates, rate limits, and the number of replicas of a stage."""
