"""The dialect of Replicate: predictions, which are jobs."""
