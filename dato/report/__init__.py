"""Show results: tables, plots, and a run's page."""
