"""Tasks whose boundaries blur: each shows some of its rows in the time of others."""

import numpy as np

from experiments.data.streams import Seed, Stream


def _givers(rng: np.random.Generator, num_tasks: int, num_rows: int) -> np.ndarray:
    """Whose row each time takes in the place of one of its own, [T, m], never its own.

    Time t takes its i-th from task ``(t + offset_i) mod T``. One offset for all tasks
    makes each give as many as it takes; offsets 1 to T - 1 in turn, in random order,
    make every pair of tasks exchange ``m / (T - 1)`` rows, up to one.
    """
    turns = -(-num_rows // (num_tasks - 1))
    offsets = [rng.permutation(np.arange(1, num_tasks)) for _ in range(turns)]
    offset = np.concatenate(offsets)[:num_rows]
    return (np.arange(num_tasks)[:, None] + offset) % num_tasks


def blurred(seed: Seed, stream: Stream, share: float) -> Stream:
    """Exchanges a share of every task's rows with those of the other tasks.

    Of the R rows of each task, ``m = round(share * R)`` at random places are shown in
    the time of the T - 1 other tasks, as evenly over these as can be, and rows of those
    stand in their places: every time has R rows still, ``R - m`` of its own task and
    ``m / (T - 1)``, up to one, of each other. No row is shown twice and none left out.
    Test rows stay those of the tasks. At a share of ``(T - 1) / T`` all times are one
    mixture.

    Args:
        seed: decides places and partners, and nothing else.
        stream: T tasks of R rows.
        share: in [0, 1]; 0 returns ``stream``.

    Returns:
        The stream, with ``owners``.

    Raises:
        ValueError: there is one task only, or the share is none.

    References:
        Bang et al., CVPR 2021, arXiv:2103.17230, whose Blurry-M has M percent of each
        task's rows from classes of the others; Koh et al., ICLR 2022, arXiv:2110.10031,
        online.

    >>> stream = Stream(np.arange(12).reshape(3, 4))
    >>> mixed = blurred(0, stream, 0.5)
    >>> sorted(mixed.rows.ravel().tolist()) == list(range(12))
    True
    >>> np.sort(mixed.owners, axis=1)  # two of its own, one of each other
    array([[0, 0, 1, 2],
           [0, 1, 1, 2],
           [0, 1, 2, 2]], dtype=int32)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"blur: expected a share in [0, 1], received {share}")
    num_tasks, num_rows = np.shape(stream.rows)
    count = round(share * num_rows)
    if count == 0:
        return stream
    if num_tasks == 1:
        raise ValueError(
            "blur: expected several tasks, which exchange rows; there is 1"
        )
    # Children 0 and 1 of the seed draw rows and maps.
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[2])
    places = np.stack([rng.permutation(num_rows)[:count] for _ in range(num_tasks)])
    givers = _givers(rng, num_tasks, count)
    own = np.arange(num_tasks)[:, None]
    owners = np.broadcast_to(own, (num_tasks, num_rows))
    if stream.owners is not None:
        owners = stream.owners
    rows, owners = np.array(stream.rows), np.array(owners, np.int32)
    # The i-th place of time t takes the row at the i-th place of its giver.
    source = givers, places[givers, np.arange(count)]
    rows[own, places], owners[own, places] = rows[source], owners[source]
    return stream._replace(rows=rows, owners=owners)
