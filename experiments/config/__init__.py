"""Benchmarks, published values, what a run is told, and how a request becomes that."""
