"""`midstep rehearse`: a cluster of many GPUs on one machine without any. Ray's nodes claim to have GPUs, and
the devices are simulated."""
