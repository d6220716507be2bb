"""`midstep plan`: predicts how a fleet would serve a load, by discrete-event simulation.

- devices: which stages share a device, and for how long it is held
- stages, denoiser: a replica of each stage, with the production step scheduler
- model_slots: the models that a denoiser holds, with the production policy of loads
- pool, routing: the replicas of a stage, and the choice of a replica for a call
- scaling: the production autoscaling policy, fed with the simulated replicas' reports
- catalog: the models that requests are for
- model: the parts of an application that concern time
- simulation: a load through all of it
- load_plan: the number of GPUs that a load needs, and their cost
- validation: the same load on a running server
"""
