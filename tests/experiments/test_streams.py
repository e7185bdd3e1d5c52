"""Rotations and permutations as one gather per task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.data import streams

SIZES = {
    "num_rows_available": 50,
    "num_tasks": 4,
    "rows_per_task": 20,
    "image_shape": (28, 28),
}
GOLDEN_ROWS = [7, 0, 12, 4, 16]
GOLDEN_PIXELS = [510, 396, 528, 617, 738]
GOLDEN_ROTATION_SUM = 1_420_854
MAKERS = (streams.rotation_stream, streams.permutation_stream)


def random_images(number, shape):
    return np.random.default_rng(0).integers(1, 256, (number, *shape), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(28, 28), (8, 8)])
@pytest.mark.parametrize("angle", [0.0, 7.3, 45.0, 90.0, 133.7, 180.0])
def test_rotation_map_turns_as_pillow_does(angle, shape):
    images = random_images(3, shape)
    expected = [np.asarray(Image.fromarray(image).rotate(angle)) for image in images]
    pixel_map = streams.rotation_map(angle, shape)
    turned = streams.apply_pixel_map(images.reshape(3, -1), pixel_map)
    np.testing.assert_array_equal(turned, np.stack(expected).reshape(3, -1))


def test_angles_lie_in_their_share_of_the_half_circle():
    stream = streams.rotation_stream(3, **SIZES)
    for task, pixel_map in enumerate(stream.pixel_map):
        angles = np.linspace(45 * task, 45 * (task + 1), 2000)
        maps = (streams.rotation_map(float(a), (28, 28)) for a in angles)
        # A map changes only every so many degrees: closest of a fine grid.
        assert min(np.sum(m != pixel_map) for m in maps) <= 4


def test_permutations_are_permutations_and_differ_between_tasks():
    stream = streams.permutation_stream(0, **SIZES)
    for pixel_map in stream.pixel_map:
        np.testing.assert_array_equal(np.sort(pixel_map), np.arange(784))
    assert len({m.tobytes() for m in stream.pixel_map}) == 4


@pytest.mark.parametrize("make", MAKERS)
def test_rows_are_distinct_within_a_task_and_in_range(make):
    rows = make(1, **SIZES).rows
    assert rows.shape == (4, 20)
    assert rows.dtype == np.int32
    assert rows.min() >= 0 and rows.max() < 50
    assert all(len(set(task)) == 20 for task in rows.tolist())


@pytest.mark.parametrize("make", MAKERS)
def test_seed_decides_everything(make):
    first, again, other = make(5, **SIZES), make(5, **SIZES), make(6, **SIZES)
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.pixel_map, again.pixel_map)
    assert not np.array_equal(first.rows, other.rows)
    assert not np.array_equal(first.pixel_map, other.pixel_map)


@pytest.mark.parametrize("make", MAKERS)
def test_map_seed_decides_the_maps_and_leaves_the_rows(make):
    own, given = make(5, **SIZES), make(5, map_seed=6, **SIZES)
    np.testing.assert_array_equal(given.rows, own.rows)
    np.testing.assert_array_equal(given.pixel_map, make(6, **SIZES).pixel_map)
    assert not np.array_equal(given.pixel_map, own.pixel_map)


def test_streams_are_the_ones_the_results_were_made_with():
    rotation = streams.rotation_stream(0, **SIZES)
    permutation = streams.permutation_stream(0, **SIZES)
    assert rotation.rows[0, :5].tolist() == GOLDEN_ROWS
    assert permutation.pixel_map[1, :5].tolist() == GOLDEN_PIXELS
    assert int(rotation.pixel_map.astype(np.int64).sum()) == GOLDEN_ROTATION_SUM


def test_pixel_map_works_inside_jit_and_fills_background_with_zero():
    images = random_images(2, (3,))
    pixel_map = np.array([2, 3, 0], np.int32)
    expected = np.stack([images[:, 2], np.zeros(2, np.uint8), images[:, 0]], axis=1)
    for apply in (streams.apply_pixel_map, jax.jit(streams.apply_pixel_map)):
        result = apply(jnp.asarray(images), jnp.asarray(pixel_map))
        np.testing.assert_array_equal(result, expected)
        assert result.dtype == jnp.uint8
    host = streams.apply_pixel_map(images, pixel_map)
    assert isinstance(host, np.ndarray)
    np.testing.assert_array_equal(host, expected)


def test_traced_map_rearranges_images_of_the_host():
    images = random_images(2, (3,))
    pixel_map = np.array([2, 3, 0], np.int32)
    apply = jax.jit(lambda m: streams.apply_pixel_map(images, m))
    expected = streams.apply_pixel_map(images, pixel_map)
    np.testing.assert_array_equal(apply(pixel_map), expected)


def test_pixel_map_checks_ranks():
    with pytest.raises(ValueError, match="expected ranks 2 and 1"):
        streams.apply_pixel_map(np.zeros((2, 2, 2)), np.zeros(4, int))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows_per_task": 51}, "at most the 50 .* received 51"),
        ({"rows_per_task": 0}, "rows_per_task: expected at least 1"),
        ({"num_tasks": -1}, "num_tasks: expected at least 1"),
        ({"image_shape": (0, 28)}, "image_shape: expected a height and a width"),
        ({"image_shape": (-2, -3)}, "image_shape: expected a height and a width"),
        ({"image_shape": (2, 2, 2, 2)}, "image_shape: expected a height and a width"),
    ],
)
def test_sizes_that_cannot_be_served_are_errors(make, change, message):
    with pytest.raises(ValueError, match=message):
        make(0, **SIZES | change)


def test_vectors_are_permuted_and_never_turned():
    sizes = {"num_rows_available": 50, "num_tasks": 3, "rows_per_task": 20}
    maps = streams.permutation_stream(1, image_shape=(7,), **sizes).pixel_map
    assert (np.sort(maps) == np.arange(7)).all()
    with pytest.raises(ValueError, match=r"image_shape: .* received \(7,\)"):
        streams.rotation_stream(1, image_shape=(7,), **sizes)


@pytest.mark.parametrize("make", MAKERS)
def test_channels_of_a_pixel_stay_together(make):
    sizes = {"num_rows_available": 50, "num_tasks": 3, "rows_per_task": 20}
    grey = make(1, image_shape=(4, 5), **sizes)
    colour = make(1, image_shape=(4, 5, 3), **sizes)
    np.testing.assert_array_equal(colour.rows, grey.rows)
    images = np.arange(1, 2 * 4 * 5 * 3 + 1).reshape(2, 60)
    for task in range(3):
        found = streams.apply_pixel_map(images, colour.pixel_map[task]).reshape(
            2, 20, 3
        )
        for channel in range(3):
            one = images.reshape(2, 20, 3)[..., channel]
            expected = streams.apply_pixel_map(one, grey.pixel_map[task])
            np.testing.assert_array_equal(found[..., channel], expected)
