"""Names in words: of benchmarks, data sets, and layers of a network."""

import re
from collections.abc import Sequence

# The order of a report: the article's claim is about images, so they come first.
_DATA_SETS = (
    ("cifar100", "CIFAR-100"),
    ("tinyimagenet", "Tiny ImageNet"),
    ("mnist", "MNIST"),
    ("fashion-mnist", "Fashion-MNIST"),
    ("digits", "Digits"),
)
OTHER = "Other benchmarks"
_STREAMS = {
    "rotations": "{} Rotations",
    "permutations": "{} Permutations",
    "many": "{} Many Permutations",
    "split": "Split {}",
    "online": "Online {}",
}
_PROTOCOLS = {
    "multi": "several passes",
    "agnostic": "no task identities",
    "aware": "task identities given",
    "validation": "validation tasks",
}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
_LAYERS = {"Conv": "convolution", "Dense": "dense layer", "layer": "layer"}
_PARTS = {"kernel": "weights", "bias": "biases"}


def _parse(benchmark: str) -> tuple[str, str, str] | None:
    """Data set, stream and what is unusual of the protocol; None for a person's own."""
    for beginning, data_set in _DATA_SETS:
        pattern = rf"{beginning}-({'|'.join(_STREAMS)})((?:-.*)?)"
        if match := re.fullmatch(pattern, benchmark):
            return data_set, match[1], match[2]
    return None


def benchmark_title(benchmark: str) -> str:
    """Says a benchmark's name in words; a person's own stays as it is.

    >>> benchmark_title("cifar100-split-multi")
    'Split CIFAR-100 (several passes)'
    """
    if (parsed := _parse(benchmark)) is None:
        return benchmark
    data_set, stream, protocol = parsed
    title = _STREAMS[stream].format(data_set)
    known = []
    if match := re.search(r"-(\d+)-tasks$", protocol):
        known = [f"{match[1]} tasks"]
        protocol = protocol[: match.start()]
    words = [_PROTOCOLS.get(word, word) for word in protocol.split("-") if word]
    return f"{title} ({', '.join(words + known)})" if words + known else title


def section_title(benchmark: str) -> str:
    """Names the section of a report that a benchmark stands in.

    One data set is one section; online streams, whose measures are others, have their
    own.

    >>> section_title("mnist-rotations"), section_title("mnist-online")
    ('MNIST', 'Online MNIST')
    """
    if (parsed := _parse(benchmark)) is None:
        return OTHER
    data_set, stream, _ = parsed
    return _STREAMS[stream].format(data_set) if stream == "online" else data_set


def benchmark_order(benchmark: str) -> tuple[int, int, str]:
    """Where a benchmark stands in a report, for sorting; a person's own come last."""
    if (parsed := _parse(benchmark)) is None:
        return len(_DATA_SETS), 0, benchmark
    data_set, stream, _ = parsed
    names = [title for _, title in _DATA_SETS]
    return names.index(data_set), list(_STREAMS).index(stream), benchmark


def _nested_title(leaf: str) -> str:
    """A leaf of a module within a module, counted from 1; others stay as they are."""
    *modules, part = leaf.split("/")
    found = [re.fullmatch(r"_*([A-Za-z]+)_(\d+)", module) for module in modules]
    names = [(match[1], int(match[2]) + 1) for match in found if match]
    if len(modules) < 2 or len(names) < len(modules):
        return leaf
    words = [f"{_LAYERS.get(kind, kind.lower())} {number}" for kind, number in names]
    return ", ".join([*words, _PARTS.get(part, part)])


def leaf_titles(leaves: Sequence[str]) -> list[str]:
    """Says in words what the leaves of a tree of weights are.

    Args:
        leaves: paths as flax names them; others stay as they are.

    >>> leaf_titles(["Dense_0/bias", "Dense_0/kernel", "Dense_1/kernel"])
    ['first layer, biases', 'first layer, weights', 'last layer, weights']
    >>> leaf_titles(["_Block_0/Conv_1/kernel"])
    ['block 1, convolution 2, weights']
    """
    parsed = [
        re.fullmatch(r"(Conv|Dense)_(\d+)/(kernel|bias)", leaf) for leaf in leaves
    ]
    counts: dict[str, int] = {}
    for match in filter(None, parsed):
        counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    titles = []
    for leaf, match in zip(leaves, parsed, strict=True):
        if match is None:
            titles.append(_nested_title(leaf))
            continue
        kind, number = match[1], int(match[2])
        is_last = kind == "Dense" and number == counts[kind] - 1 and len(leaves) > 2
        ordinals = dict(enumerate(_ORDINALS))
        place = "last" if is_last else ordinals.get(number, f"{number + 1}th")
        layer = _LAYERS[kind if "Conv" in counts else "layer"]
        titles.append(f"{place} {layer}, {_PARTS[match[3]]}")
    return titles
