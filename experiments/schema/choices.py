"""Words of which one is chosen: for checks, options of the command line, and types."""

from typing import Literal

Setting = Literal["aware", "agnostic"]
"""Whether learners are told of tasks."""
Passes = Literal["single", "multi"]
"""Passes over each task, and whose presets."""
Precision = Literal["float32", "bfloat16"]
"""What networks compute in."""
Part = Literal["test", "validation"]
"""Rows and tasks that a run is evaluated on."""
Acceptance = Literal["exact", "published"]
"""Rules by which a full reservoir accepts a row."""
Objective = Literal["mean", "last"]
"""Query losses that make the meta-loss."""
Initializer = Literal["kaiming", "xavier"]
"""Distributions of initial weights, keys of ``networks.INITIALIZERS``."""
