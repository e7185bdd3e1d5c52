"""Convolutions as matrix products: faster than XLA's on CPUs, and batched on GPUs."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

_MIN_CHANNELS = 32
_MIN_POSITIONS = 256
"""From which on fewer products are faster: with 160 channels those of 1,280 positions
take 0.76 of the time, of 320 0.80, of 128 0.97, of 32 1.16 (`bench convolution`)."""


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


def _inputs_of(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Of each four rows the inputs s0 - s2 and s1; s2; s4 - s2 and s3."""
    fours = x.reshape(*x.shape[:axis], -1, 4, *x.shape[axis + 1 :])
    s1, s2, s3, s4 = _split(fours, axis + 1)
    above = jax.lax.slice_in_dim(s4, 0, s4.shape[axis] - 1, axis=axis)
    zeros = jnp.zeros_like(jax.lax.slice_in_dim(s4, 0, 1, axis=axis))
    s0 = jnp.concatenate([zeros, above], axis)
    join = lambda *parts: jnp.concatenate(parts, -1)
    return join(s0 - s2, s1), s2, join(s4 - s2, s3)


def _factors_of(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """What these are multiplied with, of a kernel [3, ..., C, D]: [..., C or 2C, D]."""
    k0, k1, k2 = _split(kernel, 0)
    join = lambda *parts: jnp.concatenate(parts, -2)
    return join(k0, k1), k0 + k2, join(k2, k1)


def _outputs_of(products: Sequence[jax.Array], axis: int) -> jax.Array:
    """Adds the products up to each two rows of the output."""
    first, both, second = products
    pairs = jnp.stack([first + both, both + second], axis + 1)
    return pairs.reshape(*first.shape[:axis], -1, *first.shape[axis + 1 :])


def fewer_products(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """A 3x3 convolution of stride 2 with 25 multiplications in the place of 36.

    Along one axis two outputs see five inputs: the last, s0, of the four before, and
    the next four. With m = (k0 + k2) s2::

        y0 = k0 s0 + k1 s1 + k2 s2 = k0 (s0 - s2) + k1 s1 + m
        y1 = k0 s2 + k1 s3 + k2 s4 = k2 (s4 - s2) + k1 s3 + m

    which are five products instead of six, and along both axes 25 instead of 36. Their
    derivatives of all orders are as much fewer. All is summed up in another order, so
    that numbers differ by roundings.

    Args:
        images: [B, H, W, C].
        kernel: [3, 3, C, D].
        strides: 2 and 2.
        padding: one row and column of zeros before, any number after.

    Returns:
        [B, H', W', D].

    References:
        Winograd 1980, Arithmetic Complexity of Computations: F(2, 2) of the odd rows.
        Lavin and Gray 2016, arXiv:1509.09308: nested for two axes.
    """
    sizes = images.shape[1:3]
    outputs = _output_sizes(sizes, kernel, strides, padding)
    # As many fours of rows and columns as pairs of outputs; a negative number crops
    after = [(0, 2 * (n + n % 2) - m, 0) for n, m in zip(outputs, sizes, strict=True)]
    none, zero = (0, 0, 0), jnp.zeros((), images.dtype)
    images = jax.lax.pad(images, zero, [none, *after, none])
    rows = []
    for part, factors in zip(_inputs_of(images, 1), _factors_of(kernel), strict=True):
        pairs = zip(_inputs_of(part, 2), _factors_of(factors), strict=True)
        products = [_multiply(inputs, matrix) for inputs, matrix in pairs]
        rows.append(_outputs_of(products, 2))
    return _outputs_of(rows, 1)[:, : outputs[0], : outputs[1]]


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
    fits = kernel.shape[:2] == (3, 3) and tuple(strides) == (2, 2)
    fits &= all(before == 1 for before, _ in padding)
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
