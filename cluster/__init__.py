"""What stands around a cluster that serves: loading it and measuring it."""
