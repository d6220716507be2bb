"""Everything that only a GPU can show, in one run within a budget of time, with random weights of real size.

    python -m benchmarks.gpu --json benchmarks/results/NAME.json

`runner` owns the file of results and the time, `worker` is the process that uses the device, `parts` says
what is measured in which order; every other module is a part. It needs PyTorch, diffusers, transformers and
what these need, but no Ray. Without CUDA the same code runs at tiny sizes, whose figures mean nothing.
"""
