"""Tools around a serving cluster: command line, load generator, planner, rehearsal and manifests."""
