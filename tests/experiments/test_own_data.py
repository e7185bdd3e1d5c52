"""A person's own data sets and streams: arrays, files, folders, orders of rows."""

import numpy as np
import pytest
from PIL import Image

from experiments.data import own, own_streams
from experiments.data.streams import Stream

ROWS = np.random.default_rng(0).normal(size=(12, 5))
LABELS = np.arange(12) % 3


def source(**changes):
    arrays = {
        "train_images": ROWS,
        "train_labels": LABELS,
        "test_images": ROWS[:6],
        "test_labels": LABELS[:6],
    } | changes
    return own.from_arrays(**arrays)


@pytest.mark.parametrize(
    ("images", "dtype", "max_value"),
    [
        (np.zeros((12, 4, 4), np.uint8), np.uint8, 255),
        (np.zeros((12, 4, 6, 3), np.uint8), np.uint8, 255),
        (np.zeros((12, 5)), np.float32, 1),
        (np.zeros((12, 7, 2, 3, 2), np.int64), np.float32, 1),
        (np.zeros((12, 9), bool), np.float32, 1),
    ],
    ids=["grey", "colour", "vectors", "rank 4", "bools"],
)
def test_rows_of_any_shape_and_dtype_are_taken(images, dtype, max_value):
    found = source(train_images=images, test_images=images[:6])
    assert (found.train_images.dtype, found.max_value) == (dtype, max_value)
    assert found.train_images.shape == images.shape
    assert (found.num_classes, found.train_labels.dtype) == (3, np.int32)


def test_words_are_numbered_in_their_order():
    words = np.array(["cat", "ant", "bee"])[LABELS]
    found = source(train_labels=words, test_labels=words[:6])
    np.testing.assert_array_equal(found.train_labels, np.array([2, 0, 1])[LABELS])
    with pytest.raises(ValueError, match="test_labels: 'dog' is of no training row"):
        source(train_labels=words, test_labels=["dog"] * 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": LABELS[:11]}, r"expected \[N, ...\] and \[N\], received"),
        ({"train_images": ROWS[:, 0]}, r"expected \[N, ...\]"),
        ({"test_images": ROWS[:6, :4]}, "rows alike, received"),
        ({"train_images": np.where(ROWS > 0, np.nan, 0)}, "expected finite numbers"),
        ({"train_labels": LABELS - 1}, r"expected \[0, 3\), received -1 to 1"),
        ({"num_classes": 2}, r"expected \[0, 2\), received 0 to 2"),
        ({"train_labels": LABELS / 2}, "expected integers, words or floats, rec"),
        ({"train_labels": ROWS, "test_labels": ROWS[:6, 0]}, r"numbers \[N, 5\], rec"),
        ({"train_labels": ROWS, "test_labels": ROWS[:6] * np.nan}, "expected finite"),
        ({"train_images": np.full((12, 5), "a")}, "images: expected numbers"),
        ({"max_value": 0}, "max_value: expected a number > 0"),
    ],
)
def test_arrays_that_cannot_be_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        source(**changes)


@pytest.mark.parametrize("names", [own._KEYS, own._OTHER_KEYS])
def test_an_npz_is_its_arrays(names, tmp_path):
    arrays = ROWS, LABELS, ROWS[:6], LABELS[:6]
    np.savez(tmp_path / "data.npz", **dict(zip(names, arrays, strict=True)))
    for found, expected in zip(
        own.from_npz(tmp_path / "data.npz"), source(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_an_npz_without_the_arrays_is_an_error(tmp_path):
    np.savez(tmp_path / "data.npz", x=ROWS)
    with pytest.raises(
        ValueError, match=r"expected arrays train_images, .* received x"
    ):
        own.from_npz(tmp_path / "data.npz")


def write_images(folder, count, shade, size=(6, 4)):
    folder.mkdir(parents=True)
    for n in range(count):
        Image.new("RGB", size, (shade, n, 0)).save(folder / f"{n}.png")


def test_a_folder_of_images_by_class_is_split_once_and_for_all(tmp_path):
    write_images(tmp_path / "cats", 5, 10)
    write_images(tmp_path / "ants", 10, 20)
    (tmp_path / "ants/notes.txt").write_text("no image")
    found = own.from_folder(tmp_path)
    assert found.train_images.shape == (12, 4, 6, 3)
    shades = found.train_images[:, 0, 0, 0]
    np.testing.assert_array_equal(shades, np.array([20, 10])[found.train_labels])
    np.testing.assert_array_equal(np.bincount(found.test_labels), [2, 1])
    again = own.from_folder(tmp_path)
    np.testing.assert_array_equal(again.test_images, found.test_images)


def test_a_folder_may_say_what_is_for_the_test(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        write_images(tmp_path / part / "a", count, 10)
        write_images(tmp_path / part / "b", count, 20, size=(3, 3))
    with pytest.raises(ValueError, match="images of one size; give size"):
        own.from_folder(tmp_path)
    found = own.from_folder(tmp_path, size=(8, 5), mode="L")
    assert found.train_images.shape == (6, 8, 5)
    assert found.test_images.shape == (4, 8, 5)


def test_folders_without_images_are_errors(tmp_path):
    with pytest.raises(ValueError, match="expected a folder for each class"):
        own.from_folder(tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match="cats: expected images"):
        own.from_folder(tmp_path)


SIZES = {"num_tasks": 2, "rows_per_task": 3}
ORDER = np.array([[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])


def test_an_order_of_ones_own_is_shown_as_it_is_and_cut_to_size():
    draw = own_streams.same_for_all(Stream(ORDER, test_rows=ORDER[:, :1]))
    for seed in (0, 1):
        found = draw(seed, source(), map_seed=None, **SIZES)
        np.testing.assert_array_equal(found.rows, ORDER[:2, :3])
        np.testing.assert_array_equal(found.test_rows, ORDER[:2, :1])
    with pytest.raises(ValueError, match=r"expected at most \[3, 4\].* 4 and 3"):
        draw(0, source(), map_seed=None, num_tasks=4, rows_per_task=3)
    with pytest.raises(ValueError, match="no validation tasks"):
        draw((0, 1), source(), map_seed=None, **SIZES)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([[0]], "expected a Stream, received list"),
        (Stream(ORDER[:, :3]), r"rows: expected integers \[2, 3\], received"),
        (Stream(ORDER[:2, :3] / 2), "rows: expected integers"),
        (Stream(ORDER[:2, :3] + 5), "rows: expected 0 to 11, received 5 to 12"),
        (Stream(ORDER[:2, :3], np.zeros((2, 4), int)), "pixel_map: expected integers"),
        (Stream(ORDER[:2, :3], label_map=[0, 1, 3]), "label_map: expected 0 to 2"),
        (Stream(ORDER[:2, :3], test_rows=ORDER[:2]), "test_rows: expected 0 to 5"),
    ],
)
def test_a_stream_of_ones_own_is_checked(stream, message):
    with pytest.raises(ValueError, match=f"stream: {message}"):
        own_streams.checked(stream, source(), **SIZES)


def test_classes_of_their_own_are_checked_task_by_task():
    tested = np.array([[0, 3], [1, 4]])
    sizes = SIZES | {"classes_per_task": 1}
    right = Stream(ORDER[:2, :3], test_rows=tested)
    assert own_streams.checked(right, source(), **sizes).rows.dtype == np.int32
    with pytest.raises(ValueError, match="test_rows: expected"):
        own_streams.checked(Stream(ORDER[:2, :3]), source(), **sizes)
    with pytest.raises(ValueError, match="test_rows: task 1 has a row of class 0, and"):
        wrong = right._replace(test_rows=np.array([[0, 3], [1, 3]]))
        own_streams.checked(wrong, source(), **sizes)
    mapped = right._replace(rows=ORDER[1::-1, :3], label_map=[1, 0, 2])
    with pytest.raises(ValueError, match="test_rows: task 0 has a row of class 1"):
        own_streams.checked(mapped, source(), **sizes)
