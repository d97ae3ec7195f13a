"""Predict, without making an image, what a schedule costs (latency table, FLOPs) and how wrong it is (error model)."""
