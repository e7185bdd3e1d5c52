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


# Okabe and Ito's colours, told apart under all common colour vision deficiencies, less
# their yellow, which is faint on white, and with a grey. Seventeen methods share them;
# two of the same colour differ in marker.
_ORANGE, _SKY, _GREEN, _BLACK = "#E69F00", "#56B4E9", "#009E73", "#000000"
_BLUE, _VERMILLION, _PURPLE, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C"
STYLES = {
    "lamaml": Style(_VERMILLION, "o"),
    "sync": Style(_SKY, "s"),
    "cmaml": Style(_BLUE, "^"),
    "la_er": Style(_ORANGE, "D"),
    "er": Style(_GREEN, "v"),
    "er_ace": Style(_ORANGE, "P"),
    "online": Style(_GREY, "X"),
    "iid": Style(_BLACK, "P"),
    "ewc": Style(_BLACK, "o"),
    "gem": Style(_PURPLE, "s"),
    "agem": Style(_PURPLE, "^"),
    "mer": Style(_ORANGE, "v"),
    "icarl": Style(_GREY, "s"),
    "metabgd": Style(_SKY, "D"),
    "vrmcl": Style(_BLUE, "P"),
    "derpp": Style(_GREEN, "D"),
    "oml": Style(_PURPLE, "D"),
}
OTHER = Style(_GREY, "*")
_OWN_MARKERS = ("p", "h", "<", ">", "d")


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
    colors = dict.fromkeys(style.color for style in STYLES.values())
    markers, hues = [marker or _OWN_MARKERS[0]], [color or OTHER.color]
    if marker is None:
        markers = list(_OWN_MARKERS)
    if color is None:
        hues = list(colors)
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
