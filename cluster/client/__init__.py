"""`midstep generate` and `midstep jobs`: a server's jobs from the command line, over HTTP only."""
