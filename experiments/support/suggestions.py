"""What a person may have meant by a word that there is not."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Names the closest of the known words.

    Args:
        word: what was given.
        known: what there is.

    Returns:
        A question such as ``"; did you mean lamaml?"``, or "" if nothing is close.

    >>> did_you_mean("la-maml", ["er", "lamaml"])
    '; did you mean lamaml?'
    >>> did_you_mean("MNIST_rotations", ["mnist-many", "mnist-rotations"])
    '; did you mean mnist-rotations?'
    >>> did_you_mean("sgd", ["er", "lamaml"])
    ''
    """
    plain = lambda text: text.lower().replace("-", "").replace("_", "")
    names = {plain(name): name for name in known}
    close = difflib.get_close_matches(plain(word), names, 1)
    return f"; did you mean {names[close[0]]}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Says that there is nothing of a name, with the closest one or all there are.

    Args:
        kind: what was looked for.
        name: what was given.
        known: what there is.

    >>> unknown("method", "la-maml", ["er", "lamaml"])
    "unknown method 'la-maml'; did you mean lamaml?"
    >>> unknown("method", "sgd", ["er", "lamaml"])
    "unknown method 'sgd'; choose one of: er, lamaml"
    """
    names = list(known)
    hint = did_you_mean(name, names) or f"; choose one of: {', '.join(names)}"
    return f"unknown {kind} {name!r}{hint}"
