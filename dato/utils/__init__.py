"""Small helpers that know nothing of diffusion: files, images, hardware, time, memory."""
