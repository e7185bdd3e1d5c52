"""Any data set that TFDS has prepared is read by name, without TensorFlow."""

import functools
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import experiments
from experiments.config import benchmarks
from experiments.data import own
from experiments.data.source import DataError, MissingError

ROWS = np.random.default_rng(0).normal(size=(12, 5))
LABELS = np.arange(12) % 3


def builder_class(name, features, splits, keys=None, configs=()):
    """A builder of rows in memory, by split, each a dict of its features."""
    core = tfds.core

    def info(self):
        return core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=keys,
        )

    members = {
        "name": name,
        "VERSION": core.Version("1.2.0"),
        "BUILDER_CONFIGS": [core.BuilderConfig(name=each) for each in configs],
        "_info": info,
        "_split_generators": lambda self, _: {
            split: self._generate_examples(rows) for split, rows in splits.items()
        },
        "_generate_examples": lambda self, rows: enumerate(rows),
    }
    base = core.GeneratorBasedBuilder
    return type(name, (base,), members, skip_registration=True)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer


def prepare_rows(data_dir, made, **options):
    builder = made(data_dir=str(data_dir), file_format="array_record", **options)
    builder.download_and_prepare()


VECTORS = [
    {
        "values": ROWS[i].astype(np.float32),
        "kind": int(LABELS[i]),
        "ratio": i / 2,
        "word": "a",
    }
    for i in range(12)
]
VECTOR_FEATURES = {
    "values": tfds.features.Tensor(shape=(5,), dtype=np.float32),
    "kind": tfds.features.ClassLabel(num_classes=4),
    "ratio": tfds.features.Scalar(dtype=np.float32),
    "word": tfds.features.Text(),
}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Vectors of one split, pictures of several sizes, and two configurations."""
    folder = tmp_path_factory.mktemp("tfds")
    vectors = builder_class(
        "vectors", VECTOR_FEATURES, {"whole": VECTORS}, keys=("values", "kind")
    )
    prepare_rows(folder, vectors)
    pictures = lambda count: [
        {"image": png(np.full((4 + i, 6), 20 * i, np.uint8)), "label": i % 2}
        for i in range(count)
    ]
    forms = {
        "image": tfds.features.Image(shape=(None, None, 1)),
        "label": tfds.features.Scalar(dtype=np.int64),
    }
    splits = {"train": pictures(4), "test": pictures(2)}
    prepare_rows(folder, builder_class("pictures", forms, splits))
    splits = {"train": VECTORS, "test": VECTORS[:4]}
    sorts = builder_class("sorts", VECTOR_FEATURES, splits, configs=("big", "small"))
    prepare_rows(folder, sorts, config="small")
    return folder


def vectors_of(tfds_dir, cache, **options):
    parts = {"train": "whole[:8]", "test": "whole[8:]"} | options
    return experiments.from_tfds("vectors", data_dir=tfds_dir, cache_dir=cache, **parts)


def test_vectors_of_tfds_are_read_by_their_supervised_keys(tfds_dir, tmp_path):
    found = vectors_of(tfds_dir, tmp_path)
    assert (found.num_classes, found.max_value) == (4, 1)
    assert (len(found.train_labels), len(found.test_labels)) == (8, 4)
    rows = np.concatenate([found.train_images, found.test_images])
    labels = np.concatenate([found.train_labels, found.test_labels])
    # TFDS stores records in an order of its own.
    order, expected = (np.argsort(each[:, 0]) for each in (rows, ROWS))
    np.testing.assert_array_equal(rows[order], ROWS[expected].astype(np.float32))
    np.testing.assert_array_equal(labels[order], LABELS[expected])


def test_real_numbers_are_targets(tfds_dir, tmp_path):
    found = vectors_of(tfds_dir, tmp_path, label="ratio")
    assert (found.has_classes, found.num_classes) == (False, 1)
    targets = np.concatenate([found.train_labels, found.test_labels])
    np.testing.assert_array_equal(np.sort(targets, axis=0)[:, 0], np.arange(12) / 2)
    vectors = vectors_of(tfds_dir, tmp_path, image="values", label="values")
    np.testing.assert_array_equal(vectors.train_labels, vectors.train_images)


def test_other_parts_of_a_data_set_have_a_cache_of_their_own(tfds_dir, tmp_path):
    vectors_of(tfds_dir, tmp_path)
    again = vectors_of(tfds_dir, tmp_path, train="whole[:2]")
    assert len(again.train_labels) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_of_several_sizes_are_scaled_or_refused(tfds_dir, tmp_path):
    options = {"data_dir": tfds_dir, "cache_dir": tmp_path}
    found = own.from_tfds("pictures", size=(3, 5), **options)
    assert found.train_images.shape == (4, 3, 5)
    assert sorted(found.train_images[:, 0, 0].tolist()) == [0, 20, 40, 60]
    assert (found.num_classes, found.max_value) == (2, 255)
    with pytest.raises(DataError, match=r"rows of \[\?, \?, 1\] are not alike; give"):
        own.from_tfds("pictures", **options)


def test_the_configuration_and_the_version_can_be_named(tfds_dir, tmp_path):
    options = {"data_dir": tfds_dir, "cache_dir": tmp_path}
    options |= {"image": "values", "label": "kind"}
    for name in ("sorts/small", "sorts/small:1.2.0"):
        assert len(own.from_tfds(name, **options).train_labels) == 12
    with pytest.raises(DataError, match="say which configuration: 'sorts/small'"):
        own.from_tfds("sorts", **options)
    with pytest.raises(MissingError, match=r"where there is version 1\.2\.0\. Prepare"):
        own.from_tfds("sorts/small:1.0.0", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "training"}, "no split 'training'; there are whole, and parts"),
        ({"image": "valeus"}, "image: no feature 'valeus'; did you mean values"),
        ({"label": "word"}, r"'word': expected classes, whole numbers or real ones"),
        ({"image": "kind"}, "'kind': expected images or rows of numbers, found int64"),
        ({"size": (2, 2)}, "size: only images of uint8 can be scaled"),
    ],
)
def test_what_tfds_has_not_is_a_sentence(tfds_dir, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        vectors_of(tfds_dir, tmp_path, **options)


def test_what_is_not_prepared_says_how_it_is(tmp_path):
    with pytest.raises(MissingError) as error:
        own.from_tfds("kmnist", data_dir=tmp_path)
    assert f"searched {tmp_path / 'kmnist'}" in str(error.value)
    assert 'file_format="array_record").download_and_prepare()' in str(error.value)


def test_records_that_need_tensorflow_are_left_alone(tfds_dir, tmp_path):
    made = builder_class("other", VECTOR_FEATURES, {"whole": VECTORS})
    prepare_rows(tmp_path, made)
    file = tmp_path / "other/1.2.0/dataset_info.json"
    file.write_text(file.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=r"stored as tfrecord.*data_dir=\"OTHER_FOLDER"):
        own.from_tfds("other", data_dir=tmp_path)


@pytest.mark.usefixtures("registries")
def test_a_benchmark_reads_the_folder_of_data_dir(tfds_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("LAMAML_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    splits = {"train": "whole[:8]", "test": "whole[8:]"}
    made = benchmarks.register(
        "own-vectors",
        functools.partial(experiments.from_tfds, "vectors", **splits),
        stream="permutations",
        num_tasks=2,
        rows_per_task=4,
    )
    drawn = benchmarks.load(made, (0,), tfds_dir)
    assert drawn.train_images.shape == (8, 5)
    with pytest.raises(MissingError, match="'vectors' is not prepared"):
        benchmarks.load(made, (0,), tmp_path)
