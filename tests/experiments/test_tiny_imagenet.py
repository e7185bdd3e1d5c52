"""Tiny ImageNet: the project's own builder, and the prepared half where it is."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.config import benchmarks
from experiments.data import prepare, sources, tiny_imagenet
from experiments.data.source import DataError

PREPARED = Path(
    os.environ.get("LAMAML_TFDS_DIR")
    or Path(__file__).parents[2].parent / "shared" / "tfds"
)
WNIDS = ["n03", "n01", "n07"]
PER_CLASS = 4


def jpeg(level, mode="RGB", size=(64, 64)):
    """One flat colour, which JPEG keeps up to a level or two."""
    colour = level if mode == "L" else (level, 255 - level, 128)
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def contents():
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tone\n"}
    lines = []
    for c, wnid in enumerate(WNIDS):
        for i in range(PER_CLASS):
            mode = "L" if i == 0 else "RGB"
            name = f"train/{wnid}/images/{wnid}_{i}.JPEG"
            files[name] = jpeg(60 * c + 5 * i, mode)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        files[f"val/images/val_{c}.JPEG"] = jpeg(60 * c + 30)
        lines.append(f"val_{c}.JPEG\t{wnid}\t0\t0\t63\t63")
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    files["test/images/test_0.JPEG"] = jpeg(1)
    return files


def write(folder, files, form):
    if form == "folder":
        for name, data in files.items():
            path = folder / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)
    return folder


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_archive_comes_back_with_labels_in_the_order_of_wnids(form, tmp_path):
    archives = write(tmp_path / "from", contents(), form)
    prepare.prepare("tiny_imagenet", tmp_path / "data", archives)
    source = sources.load_source("tiny_imagenet", tmp_path / "data", tmp_path / "cache")
    assert source.num_classes == 3
    assert source.train_images.shape == (3 * PER_CLASS, 64, 64, 3)
    assert source.test_images.shape == (3, 64, 64, 3)
    assert np.bincount(source.train_labels).tolist() == [PER_CLASS] * 3
    # Colours tell the class: red rises by 60 from one to the next.
    for images, labels in (source[:2], source[2:4]):
        assert (images[:, 0, 0, 0] // 60 == labels).all()
    grey = [image for image in source.train_images if np.ptp(image) <= 2]
    assert len(grey) == 3  # decoded to three equal channels


def test_rows_have_an_order_that_depends_on_nothing_else(tmp_path):
    listed = [
        tiny_imagenet.list_examples(
            tiny_imagenet.find_files(write(tmp_path / form, contents(), form))
        )
        for form in ("zip", "folder")
    ]
    assert listed[0] == listed[1]
    assert listed[0].wnids == WNIDS
    assert listed[0].splits["train"][0] == ("train/n03/images/n03_0.JPEG", "n03")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wnids.txt": None}, "is the zip file of Tiny ImageNet or the folder"),
        ({"wnids.txt": b"n01 n01"}, "names no class, or one twice"),
        ({"wnids.txt": b"n01 n03 n07 n09"}, "train/n09/images holds no image"),
        ({"val/val_annotations.txt": None}, "val_annotations.txt cannot be read"),
        (
            {"val/val_annotations.txt": b"val_0.JPEG\tn99\t0"},
            "line 1: .*no class 'n99'",
        ),
        (
            {"val/val_annotations.txt": b"val_9.JPEG\tn01\t0"},
            "no image 'val/images/val_9",
        ),
        ({"val/val_annotations.txt": b"\n"}, "names no image"),
        ({"val/images/val_1.JPEG": jpeg(1, size=(32, 64))}, "expected 64 x 64 pixels"),
        ({"train/n01/images/n01_1.JPEG": b"text"}, "is no image"),
    ],
)
def test_damage_is_one_message(change, message, tmp_path):
    files = {k: v for k, v in (contents() | change).items() if v is not None}
    archives = write(tmp_path / "from", files, "folder")
    with pytest.raises(DataError, match=message):
        prepare.prepare("tiny_imagenet", tmp_path / "data", archives)
    with pytest.raises(DataError, match="is not prepared"):
        sources.check_source("tiny_imagenet", tmp_path / "data")


def test_truncated_zip_is_one_message(tmp_path):
    archives = write(tmp_path / "from", contents(), "zip")
    path = archives / "tiny-imagenet-200.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is no whole zip file"):
        prepare.prepare("tiny_imagenet", tmp_path / "data", archives)


def test_a_part_under_another_name_stands_in(tmp_path):
    archives = write(tmp_path / "from", contents(), "zip")
    own = prepare.prepare("tiny_imagenet", tmp_path / "data", archives)
    other = tmp_path / "data" / "tiny_imagenet100" / "1.0.0"
    other.mkdir(parents=True)
    assert sources.dataset_folder("tiny_imagenet", tmp_path / "data") == own
    own.rename(tmp_path / "away")
    assert sources.dataset_folder("tiny_imagenet", tmp_path / "data") == other


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    if not (PREPARED / "tiny_imagenet100").is_dir():
        pytest.skip("needs prepared data sets (LAMAML_TFDS_DIR)")
    return sources.load_source(
        "tiny_imagenet", PREPARED, tmp_path_factory.mktemp("cache")
    )


@pytest.mark.slow
def test_the_prepared_half_makes_twenty_tasks(half):
    assert half.num_classes == 100
    assert np.bincount(half.train_labels).tolist() == [500] * 100
    assert np.bincount(half.test_labels).tolist() == [50] * 100
    benchmark = benchmarks.get_benchmark("tinyimagenet-split")
    benchmark = benchmarks.with_tasks_of(benchmark, half.num_classes)
    data = benchmarks.draw(benchmark, half, (0,))
    assert data.rows.shape == (1, 20, 2250)
    assert data.test_rows.shape == (1, 20, 250)
    owned = data.label_maps[0][half.train_labels[data.rows[0, 7]]]
    assert np.unique(owned).tolist() == [35, 36, 37, 38, 39]
    assert isinstance(half.train_images, np.memmap)
