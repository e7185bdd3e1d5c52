"""The reduced ResNet-18 of online learning, with either normalisation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.networks.initializers import INITIALIZERS


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, each normalised, relu after either."""

    width: int
    stride: int
    convolution: Callable[..., nn.Conv]
    normalise: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        narrow = functools.partial(self.convolution, kernel_size=(3, 3), padding=1)
        y = nn.relu(self.normalise()(narrow(self.width, strides=self.stride)(x)))
        y = self.normalise()(narrow(self.width)(y))
        if x.shape != y.shape:
            match = self.convolution(
                self.width, kernel_size=(1, 1), padding=0, strides=self.stride
            )
            x = self.normalise()(match(x))
        return nn.relu(x + y)


def _reduced_resnet18(
    model: "ReducedResNet18 | BatchNormResNet18",
    images: jax.Array,
    normalise: Callable[..., Any],
) -> jax.Array:
    """Maps images [B, H, W, C] to logits [B, Y], within a module's ``__call__``."""
    kernel_init = INITIALIZERS[model.initializer]
    convolution = functools.partial(
        nn.Conv,
        use_bias=False,
        dtype=model.dtype,
        kernel_init=kernel_init,
        conv_general_dilated=model.convolve,
    )
    stem = convolution(model.widths[0], kernel_size=(3, 3), padding=1)
    x = nn.relu(normalise()(stem(images)))
    for stage, width in enumerate(model.widths):
        for stride in (1 if stage == 0 else 2, 1):
            x = _Block(width, stride, convolution, normalise)(x)
    x = jnp.mean(x, axis=(1, 2))
    head = nn.Dense(model.num_classes, dtype=model.dtype, kernel_init=kernel_init)
    logits = head(x)
    return logits if model.dtype is None else logits.astype(jnp.float32)


class ReducedResNet18(nn.Module):
    """The reduced ResNet-18 of online learning, with GroupNorm in BatchNorm's place.

    A 3x3 convolution, stages of two blocks, the mean over all positions, a dense layer.
    The published one is ``BatchNormResNet18``. In the place of BatchNorm is GroupNorm
    over ten channels at a time, which needs no state and treats each row alone;
    accuracies do not compare digit by digit with those of BatchNorm.
    """

    num_classes: int
    """Number of outputs."""
    widths: Sequence[int] = (20, 40, 80, 160)
    """Channels of the stages, multiples of ten; all but the first halve the image."""
    initializer: str = "kaiming"
    """Key of ``INITIALIZERS``."""
    dtype: Any = None
    """As in ``Network``."""
    convolve: Callable[..., jax.Array] | None = None
    """As in ``Network``."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, Y]."""
        normalise = functools.partial(
            nn.GroupNorm, num_groups=None, group_size=10, dtype=self.dtype
        )
        return _reduced_resnet18(self, images, normalise)


class BatchNormResNet18(nn.Module):
    """The reduced ResNet-18 as published, of 20 filters and with BatchNorm.

    In training each layer is normalised by the rows at hand, replayed ones among them.
    Its running averages keep nine tenths at a move; their variance is the biased one.

    References:
        Lopez-Paz and Ranzato 2017, arXiv:1706.08840.
    """

    num_classes: int
    """Number of outputs."""
    widths: Sequence[int] = (20, 40, 80, 160)
    """Channels of the stages; all but the first halve the image."""
    initializer: str = "kaiming"
    """Key of ``INITIALIZERS``."""
    dtype: Any = None
    """As in ``Network``; averages stay float32."""
    convolve: Callable[..., jax.Array] | None = None
    """As in ``Network``."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, Y]."""
        normalise = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        return _reduced_resnet18(self, images, normalise)
