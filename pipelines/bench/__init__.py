"""Benchmarks: `python -m pipelines.bench NAME --json`."""
