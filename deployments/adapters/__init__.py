"""Reads adapter files (LoRAs and their relatives): what they are, whom they fit, and their weights.

- files.py: what a file is, from its header alone; errors.py: why it cannot be used
- targets.py: the layers of a model; spellings.py: the names that files have for them
- keys.py, layers.py, factors.py: a file's keys as layers, with all shapes checked
- reading.py, composing.py: weights for requests; fusing.py: weights into a model, all kinds
"""
