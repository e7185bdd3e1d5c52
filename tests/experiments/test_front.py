"""The pictures that the README opens with show what their captions say."""

import numpy as np

from experiments import run_folder
from experiments.report.entries import make_entries
from experiments.report.figures import contest, front, two_weights


def test_titles_tell_the_retained_accuracy_of_the_committed_runs():
    runs = [
        run_folder.read(front.RESULTS / f"mnist-rotations/{name}")
        for name in ("online", "lamaml")
    ]
    best, worst = make_entries(runs)
    left, right = front.forgetting(worst, best).axes[:2]
    for axes, entry in ((left, worst), (right, best)):
        mean = entry.retained_accuracy.mean()
        assert axes.get_title().startswith(f"{entry.label}: {mean:.0f} %")
    assert right.get_title().startswith("La-MAML")


def test_only_the_step_size_of_the_contested_weight_shrinks():
    learnt = two_weights.learn_two_step_sizes()
    contested, free = learnt.step_sizes[-1]
    assert contested < contest.STEP_SIZE / 4 and free > contest.STEP_SIZE
    # Each path starts at the same weights and takes K steps.
    assert learnt.first.shape == learnt.last.shape == (contest.INNER_STEPS + 1, 2)
    np.testing.assert_array_equal(learnt.first[0], learnt.last[0])
    contested_move, free_move = learnt.last[-1] - learnt.last[0]
    assert contested_move < free_move / 4
