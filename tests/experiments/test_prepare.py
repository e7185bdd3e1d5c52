"""Preparing data sets: the download path, and what a failed attempt leaves behind.

``test_sources.py`` holds the tests that read prepared data sets back.
"""

import gzip
import struct

import numpy as np
import pytest

from experiments.data import prepare, sources
from experiments.data.source import DataError

ROWS = {"train": 6, "t10k": 4}
HOME = "https://example.org/"


def write_archives(folder):
    folder.mkdir()
    generator = np.random.default_rng(1)
    for stem, rows in ROWS.items():
        images = generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        header = struct.pack(">4I", 2051, rows, 28, 28)
        file = folder / f"{stem}-images-idx3-ubyte.gz"
        file.write_bytes(gzip.compress(header + images.tobytes()))
        labels = generator.integers(0, 10, rows, dtype=np.uint8)
        header = struct.pack(">2I", 2049, rows)
        file = folder / f"{stem}-labels-idx1-ubyte.gz"
        file.write_bytes(gzip.compress(header + labels.tobytes()))
    return folder


class Shelf:
    """Serves archives by address from a folder, as TFDS's download manager would."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []

    def download(self, url):
        self.asked.append(url)
        return self.folder / url.rsplit("/", 1)[1]


class Unreachable:
    def download(self, url):
        raise RuntimeError("the checksum differs")


def test_download_asks_for_the_four_archives(tmp_path):
    shelf = Shelf(write_archives(tmp_path / "archives"))
    splits = prepare._downloaded(HOME, shelf)
    assert sorted(shelf.asked) == [
        f"{HOME}{stem}-{kind}-ubyte.gz"
        for stem in ("t10k", "train")
        for kind in ("images-idx3", "labels-idx1")
    ]
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {
        "train": 6,
        "test": 4,
    }


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_official_builder_knows_every_address_that_is_fetched(name, tmp_path):
    builder_class = prepare._builder_class(name, lambda dl_manager: {})
    shelf = Shelf(write_archives(tmp_path / "archives"))
    prepare._downloaded(builder_class.URL, shelf)
    assert set(shelf.asked) == set(builder_class.url_infos)


def test_failed_download_is_one_message():
    with pytest.raises(DataError, match="cannot be fetched: the checksum differs"):
        prepare._downloaded(HOME, Unreachable())


def test_failure_on_the_way_leaves_nothing_that_counts_as_prepared(
    tmp_path, monkeypatch
):
    archives = write_archives(tmp_path / "archives")

    def fail(image):
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(prepare, "_png", fail)
        with pytest.raises(DataError, match="no space left"):
            prepare.prepare("mnist", tmp_path / "data", archives)
    with pytest.raises(DataError, match="is not prepared"):
        sources.check_source("mnist", tmp_path / "data")
    prepare.prepare("mnist", tmp_path / "data", archives)
    sources.check_source("mnist", tmp_path / "data")


def test_folder_that_cannot_be_made_is_one_message(tmp_path):
    archives = write_archives(tmp_path / "archives")
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(DataError, match="cannot be prepared in"):
        prepare.prepare("mnist", tmp_path / "data", archives)


def test_count_that_no_file_can_hold_is_refused(tmp_path):
    archives = write_archives(tmp_path / "archives")
    file = archives / "train-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(struct.pack(">Ii", 2049, -1) + bytes(6)))
    with pytest.raises(DataError, match="no whole idx archive"):
        prepare.prepare("mnist", tmp_path / "data", archives)
    assert not (tmp_path / "data").exists()


def test_digits_need_no_preparing(tmp_path):
    with pytest.raises(DataError, match="ship with scikit-learn"):
        prepare.prepare("digits", tmp_path)
