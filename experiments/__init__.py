"""Benchmarks, baselines and reports around lamaml_jax; run as a module."""
