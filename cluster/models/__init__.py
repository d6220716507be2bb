"""`midstep models`: works with the catalog's folder and the cache of models, without a server."""
