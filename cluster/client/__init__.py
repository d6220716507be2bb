"""`midstep generate` and `midstep jobs`: commands for a server's jobs, over HTTP only."""
