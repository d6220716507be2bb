"""HTTP: one folder per dialect, and what all dialects share. Nothing outside knows of it."""
