"""HTTP: one package per dialect, and the parts that all dialects share. No other code imports it."""
