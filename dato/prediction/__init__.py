"""Predict, without making an image, what a schedule costs and how large its error is.

- Cost: `latency_table` is measured by `latency_measure` and compared with the clock by `latency_check`; `flops` counts
  operations.
- Error: `error_model` is measured by `error_measure`, with the sampler's part from `sampler_response`, and written by
  `error_model_file`. `calibration` turns predicted errors into predicted quality.
"""
