"""Archives and prepared data sets with altered bytes: sound images, or one error."""

import gzip
import io
import shutil
import struct
import tarfile
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from damage import damages, settings
from hypothesis import given
from PIL import Image

from experiments.data import cifar, prepare, sources, tiny_imagenet
from experiments.data.source import DataError

fewer = hypothesis.settings(settings, max_examples=60)
ROWS = 8


def idx_bytes(array):
    magic = 2048 + array.ndim
    return struct.pack(f">{array.ndim + 1}i", magic, *array.shape) + array.tobytes()


def digits(rows):
    rng = np.random.default_rng(rows)
    images = rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
    return images, rng.integers(0, 10, rows, dtype=np.uint8)


@settings
@given(st.booleans(), damages())
def test_a_damaged_idx_file_is_read_or_refused(tmp_path_factory, zipped, damage):
    path = tmp_path_factory.mktemp("idx") / "images"
    data = idx_bytes(digits(3)[0])
    path.write_bytes(damage(gzip.compress(data) if zipped else data))
    try:
        assert prepare._read_idx(path).dtype == np.uint8
    except DataError as error:
        assert str(path) in str(error)


def cifar_tar(mode):
    files = {
        "train.bin": bytes(3074 * 2),
        "test.bin": bytes(3074),
        "fine_label_names.txt": " ".join(f"f{i}" for i in range(100)).encode(),
        "coarse_label_names.txt": " ".join(f"c{i}" for i in range(20)).encode(),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


CIFAR = {mode: cifar_tar(mode) for mode in ("w:gz", "w:", "w:xz", "w:bz2")}


@settings
@given(st.sampled_from(list(CIFAR)), damages())
def test_a_damaged_tar_is_read_or_refused(tmp_path_factory, mode, damage):
    path = tmp_path_factory.mktemp("tar") / "cifar-100-binary.tar.gz"
    path.write_bytes(damage(CIFAR[mode]))
    try:
        archive = cifar.read(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        for images, fine, coarse in archive.splits.values():
            assert images.shape[1:] == (32, 32, 3)
            assert fine.max() < 100 and coarse.max() < 20


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 200, 30)).save(buffer, format="JPEG")
    return buffer.getvalue()


def tiny_zip(method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        root = "tiny-imagenet-200"
        archive.writestr(f"{root}/wnids.txt", "n1\nn2")
        for wnid in ("n1", "n2"):
            name = f"{root}/train/{wnid}/images/{wnid}_0.JPEG"
            archive.writestr(name, jpeg())
        archive.writestr(f"{root}/val/images/v.JPEG", jpeg())
        archive.writestr(f"{root}/val/val_annotations.txt", "v.JPEG\tn2\t0\t0\t1\t1")
    return buffer.getvalue()


TINY = {m: tiny_zip(m) for m in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)}


@settings
@given(st.sampled_from(list(TINY)), damages())
def test_a_damaged_zip_is_read_or_refused(tmp_path_factory, method, damage):
    path = tmp_path_factory.mktemp("zip") / "tiny-imagenet-200.zip"
    path.write_bytes(damage(TINY[method]))
    try:
        files = tiny_imagenet.find_files(path)
        examples = tiny_imagenet.list_examples(files)
        for rows in examples.splits.values():
            for name, wnid in rows:
                assert wnid in examples.wnids
                tiny_imagenet._checked(files.read(name), name)
    except DataError:
        pass


@settings
@given(damages())
def test_a_damaged_picture_is_a_picture_or_refused(damage):
    try:
        tiny_imagenet._checked(damage(jpeg()), "n1_0.JPEG")
    except DataError as error:
        assert "n1_0.JPEG" in str(error)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a small MNIST, and one that its decoded images are kept in."""
    folder = tmp_path_factory.mktemp("archives")
    for stem, rows in (("train", ROWS), ("t10k", ROWS // 2)):
        images, labels = digits(rows)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    data_dir, cache = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("cache")
    prepare.prepare("mnist", data_dir, folder)
    sources.load_source("mnist", data_dir, cache)
    return data_dir, cache


def assert_sound(source):
    for images, labels in (
        (source.train_images, source.train_labels),
        (source.test_images, source.test_labels),
    ):
        assert images.shape == (len(labels), 28, 28) and images.dtype == np.uint8
        assert len(labels) and 0 <= labels.min() and labels.max() < source.num_classes


@fewer
@given(st.integers(0, 10**6), damages())
def test_a_damaged_data_set_is_read_or_refused(
    prepared, tmp_path_factory, which, damage
):
    place = tmp_path_factory.mktemp("copy")
    shutil.copytree(prepared[0], place / "data")
    files = sorted(path for path in (place / "data").rglob("*") if path.is_file())
    path = files[which % len(files)]
    path.write_bytes(damage(path.read_bytes()))
    try:
        assert_sound(sources.load_source("mnist", place / "data", place / "cache"))
    except DataError as error:
        assert "mnist" in str(error)


@fewer
@given(st.integers(0, 3), damages())
def test_a_damaged_cache_is_sound_or_made_again(
    prepared, tmp_path_factory, which, damage
):
    data_dir, cache = prepared
    copy = tmp_path_factory.mktemp("copy") / "cache"
    shutil.copytree(cache, copy)
    path = sorted(copy.rglob("*.npy"))[which]
    path.write_bytes(damage(path.read_bytes()))
    assert_sound(sources.load_source("mnist", data_dir, copy))


def test_labels_beyond_the_classes_are_told(prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path / "data")
    (path,) = tmp_path.rglob("features.json")
    text = path.read_text()
    assert text.count('"numClasses": "10"') == 1
    path.write_text(text.replace('"numClasses": "10"', '"numClasses": "2"'))
    with pytest.raises(DataError, match="labels beyond the 2 classes"):
        sources.load_source("mnist", tmp_path / "data", tmp_path / "cache")
