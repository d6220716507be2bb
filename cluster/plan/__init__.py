"""`midstep plan`: what a fleet would do with a load, by discrete-event simulation.

- devices: what stages share a device, and for how long it is held
- stages: a replica of each stage, with the production step scheduler
- pool: the replicas of a stage, and which of them a call goes to
- scaling: the production autoscaling policy, fed with what the simulated replicas report
- model: an application as far as time is concerned
- simulation: a load through all of it
- plan: how many GPUs a load needs, and what it costs
- validation: the same load on a server that runs
"""
