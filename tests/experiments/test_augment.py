"""Random changes of images: what each may do, and that rows draw their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import augmentation as augment

KEYS = jax.random.split(jax.random.key(0), 200)


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (6, 5, 3), minval=0.1, maxval=0.9)


def test_crop_is_a_window_of_the_padded_image(image):
    padded = np.pad(np.asarray(image), [(4, 4), (4, 4), (0, 0)])
    windows = {
        padded[i : i + 6, j : j + 5].tobytes() for i in range(9) for j in range(9)
    }
    cropped = jax.vmap(augment.crop, in_axes=(0, None))(KEYS, image)
    seen = {np.asarray(each).tobytes() for each in cropped}
    assert seen <= windows
    # 200 draws of 81 windows leave out 81 * (80 / 81)**200 = 7 on average.
    assert len(seen) > 60


def test_flip_mirrors_about_half_of_the_images(image):
    flipped = np.asarray(jax.vmap(augment.flip, in_axes=(0, None))(KEYS, image))
    mirrored = (flipped == np.asarray(image)[:, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == np.asarray(image)).all(axis=(1, 2, 3))
    assert (mirrored | same).all()
    assert 65 < mirrored.sum() < 135  # five standard deviations of 7


def test_brightness_scales_within_its_range_and_clips(image):
    bright = jax.vmap(augment.brightness, in_axes=(0, None))(KEYS, image)
    # Below 1 / (1 + 63 / 255) nothing is clipped.
    low = np.asarray(image) < 0.8
    factors = (np.asarray(bright) / np.asarray(image))[:, low]
    # One factor per image, up to the rounding of a product and a quotient.
    np.testing.assert_allclose(factors, factors[:, :1].repeat(low.sum(), 1), rtol=1e-6)
    assert 1 - 63 / 255 <= factors.min() < 0.77 and 1.23 < factors.max() < 1 + 64 / 255
    assert bright.max() <= 1


def test_rows_are_changed_each_on_its_own(image):
    images = jnp.stack([image] * 8)
    changed = augment.augment(jax.random.key(2), images, ("crop", "flip", "brightness"))
    assert changed.shape == images.shape
    assert len({np.asarray(each).tobytes() for each in changed}) == 8


def test_no_names_leave_images_alone(image):
    same = augment.augment(jax.random.key(2), image[None], ())
    np.testing.assert_array_equal(same[0], image)
