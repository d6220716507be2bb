"""The stages as Ray Serve deployments: thin classes around `deployments.engine`."""
