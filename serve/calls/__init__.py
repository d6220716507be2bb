"""The call path: calls the stages in order, survives dead replicas, and picks the one with the least work."""
