"""`midstep rehearse`: a cluster of many GPUs, on one machine and without any: nodes of Ray that say they have
them, and simulated devices."""
