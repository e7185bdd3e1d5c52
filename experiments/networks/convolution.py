"""Convolutions as matrix products: faster than XLA's on CPUs, and batched on GPUs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

_MIN_CHANNELS = 16
_MIN_POSITIONS = 256
"""From which on fewer products are faster: of stride 2 and 160 channels those of 1,280
positions take 0.75 of the time, of 320 0.79, of 128 0.88, of 32 1.19; of 3 channels
those of stride 1 take 1.7 times as long (`bench convolution`). A lower limit would gain
a little, and change the bits of stored runs."""


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
    return _multiply(patches, matrix)


def _multiply(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, H, W, D]; of two axes, products' gradients are too."""
    product = images.reshape(-1, matrix.shape[0]) @ matrix
    return product.reshape(*images.shape[:3], -1)


def _split(x: jax.Array, axis: int) -> list[jax.Array]:
    """The slices along an axis. The gradient of all is one concatenation."""
    parts = jnp.split(x, x.shape[axis], axis)
    return [jax.lax.squeeze(part, (axis,)) for part in parts]


def _inputs_at_1(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Of each pair of rows and the next: s0 - s2; s1 + s2; s2 - s1; s1 - s3."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = _split(pairs, axis + 1)
    until = lambda x: jax.lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)
    after = lambda x: jax.lax.slice_in_dim(x, 1, None, axis=axis)
    s0, s1, s2, s3 = until(even), until(odd), after(even), after(odd)
    return s0 - s2, s1 + s2, s2 - s1, s1 - s3


def _factors_at_1(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """What these are multiplied with, of a kernel [3, ..., C, D]: [..., C, D]."""
    k0, k1, k2 = _split(kernel, 0)
    return k0, (k0 + k1 + k2) / 2, (k0 - k1 + k2) / 2, k2


def _outputs_at_1(products: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    first, plus, minus, second = products
    return first + plus + minus, plus - minus - second


def _inputs_at_2(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Of each four rows the inputs s0 - s2 and s1; s2; s4 - s2 and s3."""
    fours = x.reshape(*x.shape[:axis], -1, 4, *x.shape[axis + 1 :])
    s1, s2, s3, s4 = _split(fours, axis + 1)
    above = jax.lax.slice_in_dim(s4, 0, s4.shape[axis] - 1, axis=axis)
    zeros = jnp.zeros_like(jax.lax.slice_in_dim(s4, 0, 1, axis=axis))
    s0 = jnp.concatenate([zeros, above], axis)
    join = lambda *parts: jnp.concatenate(parts, -1)
    return join(s0 - s2, s1), s2, join(s4 - s2, s3)


def _factors_at_2(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """What these are multiplied with, of a kernel [3, ..., C, D]: [..., C or 2C, D]."""
    k0, k1, k2 = _split(kernel, 0)
    join = lambda *parts: jnp.concatenate(parts, -2)
    return join(k0, k1), k0 + k2, join(k2, k1)


def _outputs_at_2(products: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    first, both, second = products
    return first + both, both + second


class _Filter(NamedTuple):
    """How two outputs along an axis are made of fewer than six products."""

    inputs: Callable[[jax.Array, int], tuple[jax.Array, ...]]
    factors: Callable[[jax.Array], tuple[jax.Array, ...]]
    outputs: Callable[[Sequence[jax.Array]], tuple[jax.Array, jax.Array]]
    """Adds the products up to the first and the second of each two."""


_FILTERS = {
    1: _Filter(_inputs_at_1, _factors_at_1, _outputs_at_1),
    2: _Filter(_inputs_at_2, _factors_at_2, _outputs_at_2),
}
"""By stride."""


def _interleave(pair: tuple[jax.Array, jax.Array], axis: int) -> jax.Array:
    first, second = pair
    rows = jnp.stack([first, second], axis + 1)
    return rows.reshape(*first.shape[:axis], -1, *first.shape[axis + 1 :])


def _ends(stride: int, size: int, outputs: int, before: int) -> tuple[int, int, int]:
    """Zeros before and after an axis, as ``jax.lax.pad`` takes them.

    As many as give each two outputs the inputs of ``_FILTERS``; a negative number
    crops. Stride 1 sees a pair of rows and the next, so that one more follows the last;
    stride 2 sees four, and brings the zero before them itself.
    """
    pairs = -(-outputs // 2)
    if stride == 1:
        return before, 2 * pairs + 2 - before - size, 0
    return 0, 4 * pairs - size, 0


def fewer_products(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """A 3x3 convolution with 16 (stride 1) or 25 (2) multiplications instead of 36.

    Along one axis of stride 1 two outputs see four inputs, s0 to s3::

        y0 = k0 s0 + k1 s1 + k2 s2 = k0 (s0 - s2) + p + q
        y1 = k0 s1 + k1 s2 + k2 s3 = p - q - k2 (s1 - s3)
        p = (k0 + k1 + k2) / 2 (s1 + s2),   q = (k0 - k1 + k2) / 2 (s2 - s1)

    which are four products instead of six. With stride 2 they see five: the last, s0,
    of the four before, and the next four. With m = (k0 + k2) s2::

        y0 = k0 s0 + k1 s1 + k2 s2 = k0 (s0 - s2) + k1 s1 + m
        y1 = k0 s2 + k1 s3 + k2 s4 = k2 (s4 - s2) + k1 s3 + m

    which are five. Along both axes that is 16 or 25 instead of 36. Their derivatives of
    all orders are as much fewer. All is summed up in another order, so that numbers
    differ by roundings.

    Args:
        images: [B, H, W, C].
        kernel: [3, 3, C, D].
        strides: 1 or 2, down and to the right.
        padding: zeros before and after; one before along an axis of stride 2.

    Returns:
        [B, H', W', D].

    References:
        Winograd 1980, Arithmetic Complexity of Computations: F(2, 3), and F(2, 2) of
        the odd rows.
        Lavin and Gray 2016, arXiv:1509.09308: nested for two axes.
    """
    sizes = images.shape[1:3]
    outputs = _output_sizes(sizes, kernel, strides, padding)
    before = [ends[0] for ends in padding]
    ends = map(_ends, strides, sizes, outputs, before)
    zero = jnp.zeros((), images.dtype)
    images = jax.lax.pad(images, zero, [(0, 0, 0), *ends, (0, 0, 0)])
    down, right = (_FILTERS[stride] for stride in strides)
    rows = []
    for part, factors in zip(down.inputs(images, 1), down.factors(kernel), strict=True):
        pairs = zip(right.inputs(part, 2), right.factors(factors), strict=True)
        products = [_multiply(inputs, matrix) for inputs, matrix in pairs]
        rows.append(_interleave(right.outputs(products), 2))
    return _interleave(down.outputs(rows), 1)[:, : outputs[0], : outputs[1]]


def is_worth_fewer(positions: int, channels: int) -> bool:
    """Whether ``fewer_products`` is faster: what else it does costs time as well.

    Args:
        positions: of the output, in all rows.
        channels: of the images.
    """
    return positions >= _MIN_POSITIONS and channels >= _MIN_CHANNELS


def convolve_by_fewer_products(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: object,
) -> jax.Array:
    """``fewer_products`` where it can be used and is faster, else by one product.

    Args:
        images: as in ``convolve_by_matmul``, and so are the others.
        kernel: [h, w, C, D].
        strides: down and to the right.
        padding: zeros before and after, for rows and for columns.
        **options: as flax gives them; left at their defaults.

    Returns:
        [B, H', W', D].
    """
    height, width = _output_sizes(images.shape[1:3], kernel, strides, padding)
    fits = kernel.shape[:2] == (3, 3) and all(
        stride == 1 or (stride == 2 and before == 1)
        for stride, (before, _) in zip(strides, padding, strict=True)
    )
    if fits and is_worth_fewer(images.shape[0] * height * width, images.shape[-1]):
        return fewer_products(images, kernel, strides, padding)
    return convolve_by_matmul(images, kernel, strides, padding, **options)


def _output_sizes(
    sizes: Sequence[int],
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[int]:
    zipped = zip(sizes, kernel.shape, strides, padding, strict=False)
    return [(n + sum(ends) - window) // step + 1 for n, window, step, ends in zipped]


def convolution_for(platform: str) -> Callable[..., jax.Array] | None:
    """Returns what convolves fastest on a platform: None is XLA's own."""
    if platform == "tpu":
        return None
    return convolve_by_fewer_products if platform == "cpu" else convolve_by_matmul
