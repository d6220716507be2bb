"""Turns any Stable Diffusion checkpoint into a folder in diffusers format, once, in a cache.

- ingest.py: `ingest` and `known`; process.py runs `ingest` in a process of its own
- model_entry.py: what to ingest, and the error; cache.py: the cache's folders
- recognition.py, prediction.py: what a file is, from its header (`deployments.tensor_files`)
- single_file.py, folder.py, vae.py, hub.py: where each part's tensors are
- adapters.py: what is merged into them
- parts.py, building.py: a part's tensors are read, checked and written
"""
