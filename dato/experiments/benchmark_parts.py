"""The parts of the benchmark. They stand here so that the command's help needs no torch."""

from __future__ import annotations

# Name -> what it measures.
PARTS = {
    "calls": "calls at each depth and ratio",
    "images": "images with each method",
    "table": "20 random schedules against the latency table",
    "control": "schedules beside a ControlNet",
    "selection": "the choice of tokens alone",
}
