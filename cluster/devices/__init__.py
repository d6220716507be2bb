"""Modelled devices: cost model files, and models without weights, for `device: simulated`."""
