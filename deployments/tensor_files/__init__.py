"""Files of tensors, of models and of adapters: what is in them, and their values.

- headers.py: names, shapes and places of a file's tensors; kinds.py: what a file is that was not expected
- tensor_names.py: names of other formats for the tensors of diffusers' models
- architectures.py: the parts of models without weights
- weights.py: reads values; errors.py: why a file cannot be used
"""
