"""What each kind of figure shows, in sentences."""

from collections.abc import Sequence

from experiments.report import wording
from experiments.report.entries import Entry
from experiments.run_folder import ANYTIME_METRICS

_SENTENCES = {
    "bars": "Retained accuracy (RA) over all tasks at the end, and backward "
    "transfer and interference (BTI), of which less than zero is forgetting. Bars "
    "are means over {seeds}, with the standard deviation; each dot is a seed. "
    "Diamonds and stars are figures of others.",
    "online-bars": "Accuracy on all classes at the end (RA), average anytime "
    "accuracy (AAA) and worst-case accuracy (WC-ACC). Bars are means over {seeds}, "
    "with the standard deviation; each dot is a seed.",
    "curves": "Mean accuracy on the tasks learnt so far, along the stream. Each "
    "panel shows one family of methods over all others in grey; dashed lines are "
    "references. Lines are means over {seeds}, bands one standard deviation; points "
    "stand where all tasks so far were tested.",
    "anytime": "Accuracy on the classes seen so far, tested within tasks too; tasks "
    "end at the vertical lines. Lines are means over {seeds}, bands one standard "
    "deviation.",
    "tasks": "Accuracy on each task (across) after each number of tasks learnt "
    "(down), mean over {seeds}. The newest task is on the diagonal; what fades "
    "below it is forgotten.",
    "probes": "Accuracy on the tasks seen through the first tasks, at the slow "
    "weights, which are kept, and at the fast weights that the inner steps lead to. "
    "Bands are one standard deviation over {seeds}.",
    "step-sizes": "Learned step sizes of each layer along the stream: the median, "
    "and bands that hold 50 and 90 percent of them, mean over {seeds}. Where a step "
    "size falls to zero, inner steps leave its weight alone.",
    "alignment": "Cosines between the gradients of the losses of tasks; above zero, "
    "a step on one task helps the other. Lines are means over {seeds}, bands one "
    "standard deviation.",
    "compute": "Retained accuracy against what a method asks for: gradient "
    "evaluations per row of the stream, on a logarithmic scale. Error bars are one "
    "standard deviation over {seeds}.",
}


def _seeds(entries: Sequence[Entry]) -> str:
    counts = sorted({entry.num_used for entry in entries})
    if counts == [1]:
        return "one seed"
    if len(counts) == 1:
        return f"{counts[0]} seeds"
    return f"{counts[0]} to {counts[-1]} seeds"


def caption(kind: str, benchmark: str, entries: Sequence[Entry]) -> str:
    """Says what a figure shows.

    Args:
        kind: of ``figures.KINDS``.
        benchmark: of its entries.
        entries: all that it may show.
    """
    is_online = any(ANYTIME_METRICS[0] in entry.percent for entry in entries)
    name = "online-bars" if is_online and kind == "bars" else kind
    sentence = _SENTENCES.get(name, f"The figure {kind!r}.")
    title = wording.benchmark_title(benchmark)
    return f"{title}. {sentence.format(seeds=_seeds(entries))}"
