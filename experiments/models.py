"""Networks of the benchmarks, as flax modules."""

from collections.abc import Sequence

import flax.linen as nn
import jax

_KAIMING_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class MLP(nn.Module):
    """Multi-layer perceptron with relu, as published for the MNIST streams.

    Weights start Kaiming-normal (fan-in, gain sqrt 2), biases at zero.
    """

    hidden: Sequence[int]
    """Widths of the hidden layers."""
    num_classes: int
    """Number of outputs."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, ...] to logits [B, num_classes]."""
        x = images.reshape(images.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=_KAIMING_NORMAL)(x))
        return nn.Dense(self.num_classes, kernel_init=_KAIMING_NORMAL)(x)
