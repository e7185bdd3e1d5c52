"""CIFAR-100 from an archive in the official layout, through the real TFDS builder."""

import io
import tarfile

import numpy as np
import pytest

from experiments.data import cifar, prepare, sources
from experiments.data.source import DataError

ROWS = {"train": 40, "test": 25}
NAMES = {
    "coarse_label_names.txt": [f"coarse{i}" for i in range(20)],
    "fine_label_names.txt": [f"fine{i}" for i in range(100)],
}


def contents():
    """Files of the archive, and the images and labels that they hold."""
    rng = np.random.default_rng(0)
    files = {name: "\n".join(names).encode() for name, names in NAMES.items()}
    arrays = {}
    for split, rows in ROWS.items():
        images = rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
        fine = rng.integers(0, 100, rows, dtype=np.uint8)
        coarse = rng.integers(0, 20, rows, dtype=np.uint8)
        pixels = images.transpose(0, 3, 1, 2).reshape(rows, -1)
        records = np.concatenate([coarse[:, None], fine[:, None], pixels], axis=1)
        files[f"{split}.bin"] = records.tobytes()
        arrays[split] = (images, fine, coarse)
    return files, arrays


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def as_set(images, labels):
    return sorted(
        (i.tobytes(), int(label)) for i, label in zip(images, labels, strict=True)
    )


def test_archive_comes_back_whole_through_the_official_builder(tmp_path):
    files, arrays = contents()
    write_tar(tmp_path / "from" / "cifar-100-binary.tar.gz", files)
    data_dir = tmp_path / "data"
    prepare.prepare("cifar100", data_dir, tmp_path / "from")
    for _ in range(2):  # decoded, then from the cache
        source = sources.load_source("cifar100", data_dir, tmp_path / "cache")
        assert source.num_classes == 100
        for part in ("train", "test"):
            images, fine, _ = arrays[part]
            found = (getattr(source, f"{part}_{what}") for what in ("images", "labels"))
            assert as_set(*found) == as_set(images, fine)


@pytest.mark.parametrize("form", ["tar", "folder", "parent"])
def test_every_form_of_the_archive_reads_alike(form, tmp_path):
    files, arrays = contents()
    if form == "tar":
        path = tmp_path / "cifar-100-binary.tar.gz"
        write_tar(path, files)
    else:
        write_folder(tmp_path / "cifar-100-binary", files)
        path = tmp_path if form == "parent" else tmp_path / "cifar-100-binary"
    archive = cifar.read(path)
    for split, expected in arrays.items():
        for one, other in zip(archive.splits[split], expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert archive.names["label"] == NAMES["fine_label_names.txt"]


def test_nothing_is_unpacked_to_disk(tmp_path):
    files, _ = contents()
    write_tar(tmp_path / "a.tar.gz", files | {"../../evil.txt": b"out"})
    cifar.read(tmp_path / "a.tar.gz")
    assert [p.name for p in tmp_path.rglob("*")] == ["a.tar.gz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.bin": b"\0" * 3073}, "records of 3074 bytes, found 3073"),
        ({"train.bin": b""}, "found 0 bytes"),
        ({"test.bin": b"\0\144" + b"\0" * 3072}, "label must be below 100, found 100"),
        ({"test.bin": b"\24" + b"\0" * 3073}, "coarse_label must be below 20"),
        ({"test.bin": None}, "test.bin"),
        ({"fine_label_names.txt": b"a b"}, "expected 100 names, found 2"),
    ],
)
def test_damage_is_one_message(change, message, tmp_path):
    files = {k: v for k, v in (contents()[0] | change).items() if v is not None}
    write_folder(tmp_path / "cifar-100-binary", files)
    with pytest.raises(DataError, match=message):
        prepare.prepare("cifar100", tmp_path / "data", tmp_path)
    assert not (tmp_path / "data").exists()


def test_truncated_tar_is_one_message(tmp_path):
    path = tmp_path / "cifar-100-binary.tar.gz"
    write_tar(path, contents()[0])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="is no whole archive"):
        cifar.read(path)


def test_nothing_there_names_the_places(tmp_path):
    with pytest.raises(DataError, match=r"cifar-100-binary\.tar\.gz.*is CIFAR-100's"):
        cifar.read(tmp_path)


class Shelf:
    def __init__(self, path):
        self.path, self.asked = path, []

    def download(self, url):
        self.asked.append(url)
        if self.path is None:
            raise RuntimeError("no network")
        return self.path


def test_download_asks_for_the_official_address(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    write_tar(path, contents()[0])
    made = cifar.builder_class(None)
    builder = made(data_dir=str(tmp_path / "data"), file_format="array_record")
    shelf = Shelf(path)
    assert set(builder._split_generators(shelf)) == {"train", "test"}
    assert set(shelf.asked) == set(made.url_infos)
    with pytest.raises(DataError, match="cannot be fetched: no network"):
        builder._split_generators(Shelf(None))
