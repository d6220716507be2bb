"""Devices that are modelled: cost model files and models without weights, for `device: simulated`."""
