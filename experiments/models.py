"""Networks of the benchmarks, as flax modules."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks import REDUCED_RESNET, Benchmark

INITIALIZERS = {
    "kaiming": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "xavier": nn.initializers.glorot_normal(),
}


def convolve_by_matmul(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: object,
) -> jax.Array:
    """Convolves as one matrix product over the patches under the kernel.

    XLA has no fast convolution for a CPU inside a loop, nor for the gradients of one:
    a second-order meta-update of the Tiny ImageNet network takes 25 seconds with it,
    and 1.2 with this, whose derivatives of all orders are products and slices too.

    Under ``vmap`` over seeds, each with a kernel of its own, XLA's is a grouped
    convolution. On a GPU the gradient of its kernel slides a window as large as the
    image, the output's gradient spread out with zeros: compiled for five seeds of the
    CIFAR-100 network, a second-order meta-update multiplies 3.8 times as often as with
    this, which is a batched product there.

    Args:
        images: [B, H, W, C].
        kernel: [h, w, C, D].
        strides: down and to the right.
        padding: zeros before and after, for rows and for columns.
        **options: of ``jax.lax.conv_general_dilated`` as flax gives them; left at
            their defaults.

    Returns:
        [B, H', W', D], as ``jax.lax.conv_general_dilated`` has it for NHWC and HWIO.
    """
    del options
    height, width = kernel.shape[:2]
    down, right = strides
    images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    last = images.shape[1] - height, images.shape[2] - width
    parts = [
        images[:, i : i + last[0] + 1 : down, j : j + last[1] + 1 : right]
        for i in range(height)
        for j in range(width)
    ]
    patches = jnp.concatenate(parts, axis=-1)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    product = patches.reshape(-1, matrix.shape[0]) @ matrix
    return product.reshape(*patches.shape[:3], -1)


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
    dtype: Any = None
    """What is computed in, such as bfloat16; None: what weights and images have.
    Weights and logits stay float32."""
    convolve: Callable[..., jax.Array] | None = None
    """Such as ``convolve_by_matmul``; None for XLA's own convolution."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, ...] ([B, H, W, C] with convolutions) to logits [B, Y]."""
        kernel_init = INITIALIZERS[self.initializer]
        layer = functools.partial(
            nn.Conv,
            kernel_size=(3, 3),
            strides=2,
            padding=1,
            dtype=self.dtype,
            kernel_init=kernel_init,
            conv_general_dilated=self.convolve,
        )
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        x = images
        for channels in self.channels:
            x = nn.relu(layer(channels)(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(dense(width)(x))
        logits = dense(self.num_classes)(x)
        return logits if self.dtype is None else logits.astype(jnp.float32)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, each normalised, relu after either."""

    width: int
    stride: int
    convolution: Callable[..., nn.Conv]
    normalise: Callable[..., nn.GroupNorm]

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


class ReducedResNet18(nn.Module):
    """The reduced ResNet-18 of online learning, with GroupNorm in BatchNorm's place.

    A 3x3 convolution, stages of two blocks, the mean over all positions, a dense layer.
    The published one (Lopez-Paz and Ranzato 2017, arXiv:1706.08840, of 20 filters)
    normalises by BatchNorm, whose running averages are a state beside the weights. In
    its place is GroupNorm over ten channels at a time, which needs no state and treats
    each row alone; accuracies do not compare digit by digit with those of BatchNorm.
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
        kernel_init = INITIALIZERS[self.initializer]
        convolution = functools.partial(
            nn.Conv,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kernel_init,
            conv_general_dilated=self.convolve,
        )
        normalise = functools.partial(
            nn.GroupNorm, num_groups=None, group_size=10, dtype=self.dtype
        )
        stem = convolution(self.widths[0], kernel_size=(3, 3), padding=1)
        x = nn.relu(normalise()(stem(images)))
        for stage, width in enumerate(self.widths):
            for stride in (1 if stage == 0 else 2, 1):
                x = _Block(width, stride, convolution, normalise)(x)
        x = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=kernel_init)
        logits = head(x)
        return logits if self.dtype is None else logits.astype(jnp.float32)


def make_network(
    benchmark: Benchmark,
    num_classes: int,
    initializer: str = "kaiming",
    dtype: Any = None,
    convolve: Callable[..., jax.Array] | None = None,
) -> nn.Module:
    """Builds a benchmark's network for ``num_classes``; the rest as in ``Network``."""
    rest = {"dtype": dtype, "convolve": convolve}
    if benchmark.network == REDUCED_RESNET:
        return ReducedResNet18(num_classes, benchmark.channels, initializer, **rest)
    return Network(
        benchmark.hidden, num_classes, benchmark.channels, initializer, **rest
    )


def head_mask(weights: dict) -> dict:
    """Marks the last layer.

    Args:
        weights: of a ``Network`` or ``ReducedResNet18``.

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
