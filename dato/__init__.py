"""dato: search cache-and-prune schedules for UNet diffusion models, and run them."""

__version__ = "0.1.0"
