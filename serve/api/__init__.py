"""HTTP: one module per dialect, schemas beside their routes. Nothing outside knows of it."""
