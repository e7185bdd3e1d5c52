"""The benchmarks as data: source, stream, network and protocol."""

from experiments.networks import REDUCED_RESNET
from experiments.schema.benchmark import Benchmark

SPLIT = "split"
"""The stream whose tasks have classes of their own."""

_FAMILIES = (
    ("mnist", "mnist", "MNIST"),
    ("fashion-mnist", "fashion_mnist", "Fashion-MNIST"),
)

TABLE = [
    Benchmark(
        "digits-rotations",
        "digits",
        "rotations",
        num_tasks=20,
        rows_per_task=200,
        description="20 rotations of scikit-learn's digits, 200 rows each",
    ),
    *(
        Benchmark(
            f"{prefix}-{kind}",
            source,
            stream,
            num_tasks=num_tasks,
            rows_per_task=rows,
            eval_every=every,
            description=f"{num_tasks} {stream} of {title}, {rows} rows each",
        )
        for prefix, source, title in _FAMILIES
        for kind, stream, num_tasks, rows, every in [
            ("rotations", "rotations", 20, 1000, 1),
            ("permutations", "permutations", 20, 1000, 1),
            ("many", "permutations", 100, 200, 10),
        ]
    ),
    Benchmark(
        "fashion-mnist-split",
        "fashion_mnist",
        SPLIT,
        num_tasks=5,
        rows_per_task=1000,
        classes_per_task=2,
        description="Fashion-MNIST in 5 tasks of 2 classes, 1000 rows each",
    ),
    Benchmark(
        "cifar100-split",
        "cifar100",
        SPLIT,
        num_tasks=20,
        rows_per_task=2250,
        classes_per_task=5,
        channels=(160, 160, 160),
        hidden=(320, 320),
        augment=("crop", "flip", "brightness"),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        description="CIFAR-100 in 20 tasks of 5 classes, 2250 rows each",
    ),
    Benchmark(
        "tinyimagenet-split",
        "tiny_imagenet",
        SPLIT,
        num_tasks=40,
        rows_per_task=2250,
        classes_per_task=5,
        channels=(160, 160, 160, 160),
        hidden=(640, 640),
        augment=("crop", "flip"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        description="Tiny ImageNet in 40 tasks of 5 classes, 2250 rows each",
    ),
    Benchmark(
        "mnist-online",
        "mnist",
        SPLIT,
        num_tasks=5,
        rows_per_task=1000,
        classes_per_task=2,
        is_online=True,
        anytime_every=5,
        description="Online: MNIST's classes arrive by two, 1000 rows of each pair",
    ),
    Benchmark(
        "cifar100-online",
        "cifar100",
        SPLIT,
        num_tasks=20,
        rows_per_task=2250,
        classes_per_task=5,
        channels=(20, 40, 80, 160),
        hidden=(),
        augment=("crop", "flip"),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        network=REDUCED_RESNET,
        is_online=True,
        anytime_every=25,
        anytime_rows=100,
        description=(
            "Online: CIFAR-100's classes arrive by five, 2250 rows of each five; "
            "reduced ResNet-18 with GroupNorm in BatchNorm's place"
        ),
    ),
]
