"""Helpers that know nothing of diffusion: files, images, tables, hardware, time, memory, lazy imports."""
