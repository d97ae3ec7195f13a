"""Quality metrics: each judges images, by itself or beside the reference images."""
