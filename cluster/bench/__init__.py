"""An open-loop load generator that speaks HTTP only, so that it can load any server."""
