"""From run folders to tables, figures and a page; computes nothing with jax."""

from experiments.report.make import make_report

__all__ = ["make_report"]
