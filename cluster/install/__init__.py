"""The installation by `make serve`, which needs only Python."""
