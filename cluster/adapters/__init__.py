"""`midstep adapters`: works with the folder of adapters, without a server."""
