"""The configuration: the `args` of an application in the YAML of Serve."""
