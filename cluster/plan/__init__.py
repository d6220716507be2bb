"""`midstep plan`: predicts how a fleet would serve a load, by discrete-event simulation.

- devices: which stages share a device, and for how long it is held
- stages: a replica of each stage, with the production step scheduler
- pool: the replicas of a stage, and the choice of a replica for a call
- scaling: the production autoscaling policy, fed with the simulated replicas' reports
- model: the parts of an application that concern time
- simulation: a load through all of it
- load_plan: the number of GPUs that a load needs, and their cost
- validation: the same load on a running server
"""
