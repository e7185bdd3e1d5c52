"""Worked examples outside of the benchmarks, each a script of its own."""
