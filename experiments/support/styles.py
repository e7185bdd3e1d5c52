"""Names, colours and markers of the methods, the same in every table and figure."""

import itertools
from typing import NamedTuple

from experiments.support.errors import UserError

NAMES = {
    "lamaml": "La-MAML",
    "sync": "Sync",
    "cmaml": "C-MAML",
    "la_er": "La-ER",
    "er": "ER",
    "er_ace": "ER-ACE",
    "mir": "MIR",
    "cls_er": "CLS-ER",
    "pocl": "POCL",
    "lor": "LOR",
    "upgd": "UPGD",
    "online": "Online",
    "iid": "IID",
    "ewc": "EWC",
    "gem": "GEM",
    "agem": "A-GEM",
    "mer": "MER",
    "icarl": "iCaRL",
    "metabgd": "Meta-BGD",
    "vrmcl": "VR-MCL",
    "derpp": "DER++",
    "oml": "OML",
}
MIXED = {"iid"}
"""Methods that see all tasks mixed: of their figures only RA means something."""


class Style(NamedTuple):
    """How a method looks in every figure."""

    color: str
    marker: str


# The hue says the family, lightness and marker the method within it: a colour is one
# method's alone, in every figure. Those of one family stay apart under the common
# colour vision deficiencies; beside others they carry their names.
STYLES = {
    "lamaml": Style("#D55E00", "o"),
    "sync": Style("#F5B041", "s"),
    "cmaml": Style("#7A2E00", "^"),
    "vrmcl": Style("#B5003C", "P"),
    "mer": Style("#0072B2", "v"),
    "oml": Style("#56B4E9", "D"),
    "metabgd": Style("#1B2C7A", "s"),
    "er": Style("#009E73", "v"),
    "la_er": Style("#8BC34A", "D"),
    "er_ace": Style("#7FD8C0", "P"),
    "derpp": Style("#004D40", "o"),
    "icarl": Style("#6B7300", "s"),
    "mir": Style("#2E5E1F", "^"),
    "cls_er": Style("#B9D91A", "X"),
    "pocl": Style("#E5B589", "D"),
    "lor": Style("#F25454", "v"),
    "upgd": Style("#B39DFF", "D"),
    "gem": Style("#8E44AD", "s"),
    "agem": Style("#CC79A7", "^"),
    "ewc": Style("#4A235A", "o"),
    "online": Style("#8C8C8C", "X"),
    "iid": Style("#000000", "P"),
}
LOOK_AHEAD, META = "La-MAML and its kin", "Other meta-learning"
REPLAY, CONSTRAINTS = "Replay", "Constraints, protected weights"
OWN, REFERENCES = "Your own", "References"
FAMILIES = {
    LOOK_AHEAD: ("lamaml", "sync", "cmaml", "vrmcl", "pocl", "lor"),
    META: ("mer", "oml", "metabgd"),
    REPLAY: ("er", "la_er", "er_ace", "derpp", "mir", "cls_er", "icarl"),
    CONSTRAINTS: ("gem", "agem", "ewc", "upgd"),
    REFERENCES: ("online", "iid"),
}
"""Methods that a figure shows together; whatever is in none is ``OWN``. References
stand in every panel: what is learnt without any memory, and with all tasks mixed."""
OTHER = Style("#8C8C8C", "*")
_OWN_COLORS = ("#00A6B4", "#A0522D", "#D81B9A", "#616161")
_OWN_MARKERS = ("p", "h", "<", ">", "d")


def family(method: str) -> str:
    """Name of the family of a method: a key of ``FAMILIES``, or ``OWN``."""
    return next((name for name, known in FAMILIES.items() if method in known), OWN)


def register(
    method: str,
    label: str | None = None,
    color: str | None = None,
    marker: str | None = None,
    is_mixed: bool = False,
) -> None:
    """Says how a person's own method is named and drawn.

    Args:
        method: its name on the command line.
        label: in tables and figures; the same if None.
        color: any of matplotlib's; one that is free if None.
        marker: likewise.
        is_mixed: whether it sees all tasks mixed, as in ``MIXED``.

    Raises:
        UserError: matplotlib has no such colour or marker.
    """
    used = {style for name, style in STYLES.items() if name != method}
    markers, hues = [marker or _OWN_MARKERS[0]], [color or OTHER.color]
    if marker is None:
        markers = list(_OWN_MARKERS)
    if color is None:
        hues = list(_OWN_COLORS)
    found = [Style(hue, mark) for mark, hue in itertools.product(markers, hues)]
    style = next((each for each in found if each not in used), found[0])
    _check_drawable(style)
    NAMES[method], STYLES[method] = label or method, style
    MIXED.discard(method)
    if is_mixed:
        MIXED.add(method)


def _check_drawable(style: Style) -> None:
    from matplotlib.colors import is_color_like
    from matplotlib.markers import MarkerStyle

    if not is_color_like(style.color):
        raise UserError(f"color: matplotlib has none like {style.color!r}")
    try:
        MarkerStyle(style.marker)
    except ValueError as error:
        raise UserError(f"marker: matplotlib has none like {style.marker!r}") from error
