"""Reads stored updates of the authors' code and builds the networks they ran.

One file holds one case: inputs, every random decision and every number of a few
observe calls. Nothing here knows a size; all of them come from the file.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lamaml_jax as lm

FOLDER = pathlib.Path(
    os.environ.get("LAMAML_FIXTURES")
    or pathlib.Path(__file__).resolve().parents[2] / "shared" / "fixtures"
)
needs_folder = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs the stored updates (LAMAML_FIXTURES)"
)


class Stored(NamedTuple):
    """One file: what was run, and every array by its key."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]


def paths(family: str) -> list[pathlib.Path]:
    """Files of one family of cases, in a fixed order."""
    return sorted(FOLDER.glob(f"{family}_*.npz"))


def load(path: pathlib.Path) -> Stored:
    """Unpacks one file: two flat arrays, and an index that says which part is what."""
    with np.load(path, allow_pickle=False) as members:
        flat = {name: members[name] for name in ("f", "i")}
        index = json.loads(members["index"].item())
        meta = json.loads(members["meta"].item())
    arrays = {}
    for key, (name, offset, shape, dtype) in index.items():
        size = int(np.prod(shape, dtype=np.int64))
        part = flat[name][offset : offset + size]
        arrays[key] = part.reshape(shape).astype(dtype)
    return Stored(meta, arrays)


def count(stored: Stored, key: str) -> int:
    """Number of consecutive n from 0 for which ``key.format(n)`` is in the file."""
    n = 0
    while key.format(n) in stored.arrays:
        n += 1
    return n


def leaves(stored: Stored, prefix: str) -> list[np.ndarray]:
    """The arrays ``prefix/0``, ``prefix/1``, ... as one pytree (a list)."""
    number = count(stored, prefix + "/{}")
    return [stored.arrays[f"{prefix}/{j}"] for j in range(number)]


def state_before(stored: Stored, update: int, kind: str) -> list[np.ndarray]:
    """Leaves of ``kind`` (param or alpha) at the start of an update."""
    return leaves(stored, f"upd/{update - 1}/{kind}" if update else f"init/{kind}")


def updates_of(stored: Stored, obs: int) -> list[int]:
    """Updates of one observe call, in order: its glances."""
    number = count(stored, "upd/{}/obs")
    return [m for m in range(number) if stored.arrays[f"upd/{m}/obs"] == obs]


def inner_batches(stored: Stored, update: int) -> list[dict[str, np.ndarray]]:
    """Inner batches as recorded, of unequal lengths; every row of the current task."""
    arrays = stored.arrays
    task = arrays[f"obs/{arrays[f'upd/{update}/obs']}/t"]
    batches = []
    for i in range(count(stored, f"upd/{update}/inner/{{}}/x")):
        x, y = (arrays[f"upd/{update}/inner/{i}/{name}"] for name in "xy")
        batches.append({"x": x, "y": y, "t": np.full_like(y, task)})
    return batches


def query_rows(stored: Stored, update: int) -> dict[str, np.ndarray]:
    """Rows of the meta-loss, replayed ones first."""
    return {name: stored.arrays[f"upd/{update}/b{name}"] for name in "xyt"}


def concatenate(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins batches along their rows."""
    return {
        name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]
    }


def pad(
    batch: dict[str, np.ndarray], num_rows: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Appends rows of zeros, at which every loss is finite; returns the mask too."""
    missing = num_rows - len(batch["y"])
    padded = {
        name: np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))
        for name, rows in batch.items()
    }
    return padded, np.arange(num_rows) < num_rows - missing


def support(
    stored: Stored, update: int, num_rows: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inner batches padded to leaves [K, num_rows, ...] and their mask."""
    padded = [pad(batch, num_rows) for batch in inner_batches(stored, update)]
    stacked = {
        name: np.stack([batch[name] for batch, _ in padded]) for name in padded[0][0]
    }
    return stacked, np.stack([mask for _, mask in padded])


def apply_network(
    config: list[list[Any]], weights: list[jax.Array], x: Any
) -> jax.Array:
    """Runs a network of the authors' parser in torch's layout.

    Linear weights are (out, in), convolutions OIHW on NCHW images; ``rep`` marks the
    layer whose output iCaRL reads, and does nothing. ``tanh`` is of our own draws.
    """
    rest = iter(weights)
    for kind, sizes, *_ in config:
        if kind == "linear":
            weight, bias = next(rest), next(rest)
            x = x @ weight.T + bias[None, :]
        elif kind == "conv2d":
            *_, stride, padding = sizes
            weight, bias = next(rest), next(rest)
            x = jax.lax.conv_general_dilated(
                x,
                weight,
                (stride, stride),
                [(padding, padding)] * 2,
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
            )
            x = x + bias[None, :, None, None]
        elif kind == "relu":
            x = jax.nn.relu(x)
        elif kind == "tanh":
            x = jnp.tanh(x)
        elif kind == "flatten":
            x = jnp.reshape(x, (x.shape[0], -1))
        elif kind != "rep":
            raise ValueError(f"config: unknown layer {kind!r}")
    return x


def loss_of(stored: Stored) -> Any:
    """Loss of a file's network: own head of each row, or one head for all."""
    meta = stored.meta

    def loss_fn(weights, batch) -> jax.Array:
        logits = apply_network(meta["config"], weights, batch["x"])
        if not meta["multi_head"]:
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return lm.losses.multi_head_cross_entropy(
            logits, batch["y"], batch["t"], int(meta["nc_per_task"])
        )

    return loss_fn


def predictions(stored: Stored, weights: Any) -> dict[int, tuple[Any, np.ndarray]]:
    """Logits over each task's own outputs after training, ours and the recorded."""
    logits = apply_network(stored.meta["config"], weights, stored.arrays["eval/x"])
    per_task = int(stored.meta["nc_per_task"])
    found = {}
    for task in range(count(stored, "eval/out/{}")):
        own = slice(None)
        if stored.meta["multi_head"]:
            own = slice(task * per_task, (task + 1) * per_task)
        recorded = stored.arrays[f"eval/out/{task}"]
        found[task] = logits[:, own], recorded[:, own]
    return found
