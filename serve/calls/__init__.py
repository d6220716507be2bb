"""The call path: the stages called in order, through the deaths of replicas, by the least work."""
