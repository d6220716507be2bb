"""The dialect of AUTOMATIC1111's Stable Diffusion web UI, version 1.10: `/sdapi/v1/`."""
