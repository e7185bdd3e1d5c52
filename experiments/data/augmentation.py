"""Random changes of training images, one key per row; part of the compiled program."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

import lamaml_jax as lm

_CROP_PADDING = 4
_BRIGHTNESS = 63 / 255


def crop(key: lm.Key, image: jax.Array) -> jax.Array:
    """Pads an image with 4 black pixels on every side and cuts its size out at random.

    Args:
        key: consumed.
        image: [H, W, C] in [0, 1].

    Returns:
        [H, W, C].
    """
    widths = [(_CROP_PADDING, _CROP_PADDING)] * 2 + [(0, 0)]
    padded = jnp.pad(image, widths)
    corner = jax.random.randint(key, (2,), 0, 2 * _CROP_PADDING + 1)
    return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)


def flip(key: lm.Key, image: jax.Array) -> jax.Array:
    """Mirrors an image [H, W, C] left to right, with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def brightness(key: lm.Key, image: jax.Array) -> jax.Array:
    """Scales an image [H, W, C] in [0, 1] by a factor in 1 +- 63/255, and clips it."""
    factor = jax.random.uniform(key, (), image.dtype, 1 - _BRIGHTNESS, 1 + _BRIGHTNESS)
    return jnp.clip(factor * image, 0, 1)


STEPS: dict[str, Callable[[lm.Key, jax.Array], jax.Array]] = {
    "crop": crop,
    "flip": flip,
    "brightness": brightness,
}


def keys_by_content(key: lm.Key, images: jax.Array) -> jax.Array:
    """Derives a key for every image from ``key`` and its numbers.

    Images that differ get keys that do, and one image always the same wherever it
    stands in a batch.

    Args:
        key: consumed.
        images: [B, ...] of any dtype.

    Returns:
        [B] keys.
    """
    flat = images.reshape(images.shape[0], -1)
    if flat.dtype == jnp.float32:
        numbers = jax.lax.bitcast_convert_type(flat, jnp.uint32)
    else:
        numbers = flat.astype(jnp.uint32)
    # Odd factors lose no bit modulo 2**32.
    factors = jnp.uint32(2654435761) * (2 * jnp.arange(flat.shape[1]) + 1).astype(
        jnp.uint32
    )
    words = jnp.sum(numbers * factors[None, :], axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, words)


def augment(key: lm.Key, images: jax.Array, names: Sequence[str]) -> jax.Array:
    """Changes every image on its own.

    Args:
        key: consumed; split once per row.
        images: [B, H, W, C] in [0, 1].
        names: keys of ``STEPS``, applied in this order.

    Returns:
        [B, H, W, C] in [0, 1].
    """
    return augment_each(jax.random.split(key, images.shape[0]), images, names)


def augment_each(keys: jax.Array, images: jax.Array, names: Sequence[str]) -> jax.Array:
    """Changes every image by a key of its own, otherwise as ``augment``."""

    def one(key: lm.Key, image: jax.Array) -> jax.Array:
        for name, step_key in zip(
            names, jax.random.split(key, len(names)), strict=True
        ):
            image = STEPS[name](step_key, image)
        return image

    return jax.vmap(one)(keys, images)
