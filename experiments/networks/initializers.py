"""Distributions of initial weights by name."""

import flax.linen as nn

INITIALIZERS = {
    "kaiming": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "xavier": nn.initializers.glorot_normal(),
}
