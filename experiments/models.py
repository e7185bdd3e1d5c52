"""Networks of the benchmarks, as flax modules."""

from collections.abc import Sequence

import flax.linen as nn
import jax

INITIALIZERS = {
    "kaiming": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "xavier": nn.initializers.glorot_normal(),
}


class Network(nn.Module):
    """The published networks: strided convolutions, if any, then a perceptron.

    Convolutions are 3x3 with stride 2 and padding 1; relu follows every layer but the
    last. Weights start Kaiming-normal (fan-in, gain sqrt 2) or Xavier-normal, biases at
    zero.
    """

    hidden: Sequence[int]
    """Widths of the hidden dense layers."""
    num_classes: int
    """Number of outputs."""
    channels: Sequence[int] = ()
    """Channels of the convolutions; none for flat images."""
    initializer: str = "kaiming"
    """Key of ``INITIALIZERS``."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, ...] ([B, H, W, C] with convolutions) to logits [B, Y]."""
        kernel_init = INITIALIZERS[self.initializer]
        x = images
        for channels in self.channels:
            conv = nn.Conv(channels, (3, 3), 2, padding=1, kernel_init=kernel_init)
            x = nn.relu(conv(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=kernel_init)(x))
        return nn.Dense(self.num_classes, kernel_init=kernel_init)(x)


def head_mask(weights: dict) -> dict:
    """Marks the last layer.

    Args:
        weights: of a ``Network``.

    Returns:
        Tree like ``weights`` of bools, True for the leaves of the last dense layer.
    """
    layers = weights["params"]
    dense = [int(name.split("_")[1]) for name in layers if name.startswith("Dense_")]
    last = f"Dense_{max(dense)}"
    return {
        "params": {
            name: jax.tree.map(lambda _, name=name: name == last, layer)
            for name, layer in layers.items()
        }
    }
