"""The application: HTTP in, images out. For Ray Serve itself, write `from ray import serve`."""
