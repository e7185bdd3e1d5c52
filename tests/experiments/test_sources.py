"""Data sets: prepared from archives, read back, cached, and checked before use."""

import gzip
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.data import prepare, sources, tfds_files
from experiments.data.source import DataError

PREPARED = Path(
    os.environ.get("LAMAML_TFDS_DIR")
    or Path(__file__).parents[2].parent / "shared" / "tfds"
)
NUM_ROWS = {"train": 30, "t10k": 12}


def idx_bytes(array):
    magic = {3: 2051, 1: 2049}[array.ndim]
    return struct.pack(f">{array.ndim + 1}i", magic, *array.shape) + array.tobytes()


def write_archives(folder, zipped=True):
    """Writes four small archives of random images in the official layout."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for stem, rows in NUM_ROWS.items():
        images = generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, rows, dtype=np.uint8)
        arrays[stem] = (images, labels)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            name = f"{stem}-{kind}-ubyte"
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name.replace("-idx", ".idx")).write_bytes(data)
    return arrays


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    return folder, write_archives(folder)


@pytest.fixture(scope="session")
def prepared(archives, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    prepare.prepare("mnist", data_dir, archives[0])
    return data_dir


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of the prepared data set that a test may damage."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


def as_set(images, labels):
    return sorted(
        (i.tobytes(), int(label)) for i, label in zip(images, labels, strict=True)
    )


def test_prepared_archives_come_back_whole(archives, prepared, tmp_path):
    source = sources.load_source("mnist", prepared, tmp_path)
    train, test = archives[1]["train"], archives[1]["t10k"]
    # TFDS stores records in an order of its own.
    assert as_set(source.train_images, source.train_labels) == as_set(*train)
    assert as_set(source.test_images, source.test_labels) == as_set(*test)
    assert source.train_images.dtype == np.uint8
    assert source.train_labels.dtype == np.int32
    assert (source.num_classes, source.max_value) == (10, 255)
    assert "tensorflow" not in sys.modules


def test_official_builder_reads_what_was_prepared(prepared):
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist", data_dir=prepared)
    assert builder.is_prepared()
    assert builder.info.splits["train"].num_examples == NUM_ROWS["train"]


def test_fashion_mnist_is_prepared_from_plain_archives(tmp_path):
    arrays = write_archives(tmp_path / "archives", zipped=False)
    prepare.prepare("fashion_mnist", tmp_path / "data", tmp_path / "archives")
    source = sources.load_source("fashion_mnist", tmp_path / "data", tmp_path / "cache")
    assert as_set(source.train_images, source.train_labels) == as_set(*arrays["train"])


def test_second_load_reads_the_cache(prepared, tmp_path, monkeypatch):
    first = sources.load_source("mnist", prepared, tmp_path)
    monkeypatch.setattr(tfds_files, "_decode", lambda *_: pytest.fail("decoded again"))
    again = sources.load_source("mnist", prepared, tmp_path)
    np.testing.assert_array_equal(first.train_images, again.train_images)


@pytest.mark.parametrize("damage", ["truncate", "other rows", "crop", "no array"])
def test_damaged_cache_is_made_again(prepared, tmp_path, damage):
    first = sources.load_source("mnist", prepared, tmp_path)
    (file,) = tmp_path.rglob("train_images.npy")
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "other rows":
        np.save(file, first.train_images[:3])
    elif damage == "crop":
        np.save(file, first.train_images[:, :5, :5])
    else:
        file.write_bytes(b"nothing")
    again = sources.load_source("mnist", prepared, tmp_path)
    np.testing.assert_array_equal(first.train_images, again.train_images)


def test_cache_follows_the_prepared_files(archives, copied, tmp_path):
    sources.load_source("mnist", copied, tmp_path / "cache")
    shutil.rmtree(copied / "mnist")
    other = tmp_path / "other"
    shutil.copytree(archives[0], other)
    labels = np.zeros(NUM_ROWS["train"], np.uint8)
    (other / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    prepare.prepare("mnist", copied, other)
    source = sources.load_source("mnist", copied, tmp_path / "cache")
    assert not source.train_labels.any()


def test_unwritable_cache_is_a_warning_not_an_error(prepared, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="cannot be kept"):
        source = sources.load_source("mnist", prepared, tmp_path / "cache")
    assert len(source.train_images) == NUM_ROWS["train"]


def test_missing_data_set_names_folder_and_command(tmp_path):
    with pytest.raises(DataError) as error:
        sources.check_source("mnist", tmp_path)
    assert str(tmp_path / "mnist" / "3.0.1") in str(error.value)
    assert "python -m experiments data prepare mnist --data-dir" in str(error.value)


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path)):
        sources.check_source("mnist")


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_truncated_shard_is_found_before_any_work(copied, keep):
    (shard,) = copied.rglob("mnist-train.array_record*")
    data = shard.read_bytes()
    end = int(keep * len(data)) if isinstance(keep, float) else keep
    shard.write_bytes(data[:end])
    with pytest.raises(DataError, match=r"mnist-train.*(cannot be read|records)"):
        sources.check_source("mnist", copied)


def test_missing_shard_is_found(copied):
    (shard,) = copied.rglob("mnist-test.array_record*")
    shard.unlink()
    with pytest.raises(DataError, match=r"mnist-test.* is missing"):
        sources.check_source("mnist", copied)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"splits": [{"name": "train"}]}'])
def test_unreadable_info_is_found(copied, text):
    (copied / "mnist/3.0.1/dataset_info.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset_info\.json"):
        sources.check_source("mnist", copied)


def test_other_file_format_is_not_called_broken(copied):
    file = copied / "mnist/3.0.1/dataset_info.json"
    file.write_text(file.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=r"is stored as tfrecord.*Leave it") as error:
        sources.check_source("mnist", copied)
    assert "Remove" not in str(error.value)


def test_swapped_shards_are_found(copied):
    (train,) = copied.rglob("mnist-train.array_record*")
    (test,) = copied.rglob("mnist-test.array_record*")
    shutil.copy(test, train)
    with pytest.raises(DataError, match="has 12 of 30 records"):
        sources.check_source("mnist", copied)


def test_unknown_data_set_lists_the_known():
    with pytest.raises(DataError, match=r"unknown data set 'xyz'.*mnist"):
        sources.check_source("xyz")
    with pytest.raises(DataError, match="did you mean cifar100"):
        sources.check_source("cifar")


def test_digits_are_split_once_and_for_all():
    source = sources.load_source("digits")
    assert source.train_images.shape == (1437, 8, 8)
    assert source.test_images.shape == (360, 8, 8)
    assert source.train_images.max() == source.max_value == 16
    assert np.bincount(source.test_labels).min() > 20
    assert source.test_labels[:8].tolist() == [6, 6, 6, 2, 5, 6, 6, 2]


def test_preparing_twice_leaves_the_first_alone(archives, prepared):
    (shard,) = prepared.rglob("mnist-train.array_record*")
    before = shard.stat().st_mtime_ns
    prepare.prepare("mnist", prepared, archives[0])
    assert shard.stat().st_mtime_ns == before


def test_preparing_needs_archives_or_leave_to_download(tmp_path):
    with pytest.raises(DataError, match=r"--from FOLDER.*--download"):
        prepare.prepare("mnist", tmp_path)


def corrupt(folder, how):
    file = folder / "train-images-idx3-ubyte.gz"
    data = gzip.decompress(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "cut archive":
        file.write_bytes(file.read_bytes()[:500])
    elif how == "cut content":
        file.write_bytes(gzip.compress(data[:-1]))
    elif how == "magic":
        file.write_bytes(gzip.compress(b"\0\0\0\1" + data[4:]))
    elif how == "counts":
        images = np.zeros((5, 28, 28), np.uint8)
        file.write_bytes(gzip.compress(idx_bytes(images)))
    elif how == "labels":
        labels = np.full(NUM_ROWS["train"], 10, np.uint8)
        label_file = folder / "train-labels-idx1-ubyte.gz"
        label_file.write_bytes(gzip.compress(idx_bytes(labels)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "none of train-images-idx3-ubyte.gz"),
        ("cut archive", "no whole idx archive"),
        ("cut content", "no whole idx archive"),
        ("magic", "magic number 1"),
        ("counts", "found 5 images, 30 labels"),
        ("labels", "labels must be 0 to 9, found 10"),
    ],
)
def test_bad_archives_are_refused_before_anything_is_written(
    archives, tmp_path, how, message
):
    folder = tmp_path / "archives"
    shutil.copytree(archives[0], folder)
    corrupt(folder, how)
    with pytest.raises(DataError, match=message):
        prepare.prepare("mnist", tmp_path / "data", folder)
    assert not (tmp_path / "data").exists()


def test_real_mnist_is_read_as_published(tmp_path):
    if not PREPARED.is_dir():
        pytest.skip("needs the prepared data sets (LAMAML_TFDS_DIR)")
    sources.check_source("mnist", PREPARED)
    shards = tfds_files.shards(sources.prepared_folder("mnist", PREPARED))
    assert [n for _, n in shards["train"]] == [60_000]
    assert [n for _, n in shards["test"]] == [10_000]


@pytest.mark.slow
def test_real_mnist_decodes_to_known_statistics(tmp_path):
    if not PREPARED.is_dir():
        pytest.skip("needs the prepared data sets (LAMAML_TFDS_DIR)")
    source = sources.load_source("mnist", PREPARED, tmp_path)
    # Counts and mean intensity that are quoted for MNIST everywhere.
    assert np.bincount(source.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert source.train_images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)


@pytest.fixture
def plain(prepared, tmp_path):
    sources.write_arrays(sources.load_source("mnist", prepared), "mnist", tmp_path)
    return tmp_path


def test_plain_arrays_stand_for_the_data_set(prepared, plain):
    sources.check_source("mnist", plain)
    expected = sources.load_source("mnist", prepared)
    actual = sources.load_source("mnist", plain)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
        assert getattr(actual, name).dtype == getattr(expected, name).dtype
    assert actual.max_value == 255


def test_a_prepared_data_set_comes_before_plain_arrays(prepared, plain):
    shutil.copytree(prepared / "mnist" / "3.0.1", plain / "mnist" / "3.0.1")
    (plain / "mnist" / "arrays" / "train_images.npy").unlink()
    assert len(sources.load_source("mnist", plain).train_images) == NUM_ROWS["train"]


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("train_images", lambda x: x.astype(np.float32), "expected uint8"),
        ("train_images", lambda x: x[:, :14], r"\[N, 28, 28\]"),
        ("test_labels", lambda x: x[:-1], "12 images and 11 labels for test"),
        ("test_labels", lambda x: x - 1, "beyond the 10 classes"),
        ("train_labels", lambda x: x[:0], r"expected int32 \[N\]"),
    ],
)
def test_plain_arrays_of_another_form_are_refused(plain, key, change, message):
    path = plain / "mnist" / "arrays" / f"{key}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(DataError, match=message):
        sources.check_source("mnist", plain)


def test_a_damaged_plain_array_is_named(plain):
    path = plain / "mnist" / "arrays" / "test_images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test_images\.npy"):
        sources.load_source("mnist", plain)


def test_plain_arrays_can_be_written_over_those_that_they_are_read_from(plain):
    expected = np.array(sources.load_source("mnist", plain).train_images)
    sources.write_arrays(sources.load_source("mnist", plain), "mnist", plain)
    found = sources.load_source("mnist", plain).train_images
    np.testing.assert_array_equal(found, expected)
