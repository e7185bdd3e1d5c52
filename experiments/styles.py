"""Names, colours and markers of the methods, the same in every table and figure."""

from typing import NamedTuple

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
MIXED = frozenset({"iid"})
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
