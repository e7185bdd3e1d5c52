"""Where seeds and rows go: meshes, placement, and several processes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.support.errors import UserError

SEED, ROW = "seed", "row"
"""Axes of a mesh: seeds side by side; rows of support and query of each."""


def use_cpu_devices(count: int) -> None:
    """Makes ``count`` CPU cores visible as devices; call before jax starts."""
    jax.config.update("jax_num_cpu_devices", count)


def cache_compilations(folder: Path) -> None:
    """Keeps compiled programs in ``folder`` so that later runs need not compile."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def join_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Connects this process with the others of its run; call before jax starts.

    Args:
        coordinator: HOST:PORT of process 0; None where jax finds out by itself, as on
            TPU pods and under SLURM, Open MPI and Kubernetes. The other two likewise.
        num_processes: of the run.
        process_id: of this one, from 0.

    Raises:
        UserError: the processes do not come together.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--distributed: {error}") from error


def make_mesh(num_devices: int | None = None, per_seed: int = 1) -> Mesh:
    """Returns a mesh of the axes ``SEED`` and ``ROW`` over the first devices.

    Args:
        num_devices: of all processes together; None takes all.
        per_seed: devices that share the rows of one seed.

    Raises:
        UserError: more devices are asked for than there are, or ``per_seed`` does not
            divide them.
    """
    devices = jax.devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise UserError(
            f"--devices: expected 1 to {len(devices)} ({jax.default_backend()}), "
            f"received {num_devices}"
        )
    if per_seed < 1 or num_devices % per_seed:
        raise UserError(
            f"--mesh: {num_devices} devices do not divide into groups of {per_seed}"
        )
    return Mesh(np.array(devices[:num_devices]).reshape(-1, per_seed), (SEED, ROW))


def parse_mesh(text: str) -> tuple[int, int]:
    """Reads SEEDSxROWS, such as 2x4: groups of devices, and devices in each.

    Raises:
        UserError: it is no such pair of positive numbers.
    """
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--mesh: expected SEEDSxROWS such as 2x4, received {text!r}")
    return int(parts[0]), int(parts[1])


def chosen_mesh(
    num_devices: int | None = None, text: str | None = None, distributed: bool = False
) -> Mesh:
    """Makes the mesh that a person asks for.

    Args:
        num_devices: as ``make_mesh``; not of several processes, which use all.
        text: as ``parse_mesh``, or None for a group per device.
        distributed: whether there are several processes.

    Returns:
        The mesh.

    Raises:
        UserError: as those two.
    """
    if text is not None:
        num_groups, per_seed = parse_mesh(text)
        return make_mesh(num_groups * per_seed, per_seed)
    return make_mesh(None if distributed else num_devices)


def platform_of(mesh: Mesh) -> str:
    """Returns what the mesh's devices are, such as ``"cpu"``."""
    return mesh.devices.flat[0].platform


def by_seed(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose leading axis is the seeds."""
    return NamedSharding(mesh, PartitionSpec(SEED))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def over_seeds(
    fn: Callable[[Any, Any], Any], mesh: Mesh, platform: str
) -> Callable[[Any, Any], Any]:
    """Maps ``fn`` over seeds: sharded over devices, batched or in turn within one.

    On a CPU the seeds of one device run in turn, because one seed's matrices stay in
    cache and batched ones do not (1.3 times slower); accelerators batch them.

    Args:
        fn: ``fn(shared, own)`` of one seed.
        mesh: from ``make_mesh``.
        platform: what it is compiled for, such as ``"cpu"``.

    Returns:
        The function of ``shared`` and of ``own`` with a leading axis S, a multiple of
        the mesh's first.
    """

    def mapped(shared: Any, own: Any) -> Any:
        if platform != "cpu":
            return jax.vmap(fn, in_axes=(None, 0))(shared, own)
        return jax.lax.map(lambda one: fn(shared, one), own)

    return jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(SEED)),
        out_specs=PartitionSpec(SEED),
        axis_names={SEED} if mesh.shape[ROW] > 1 else set(mesh.axis_names),
        check_vma=False,
    )


def spread_rows(rows: jax.Array, num_devices: int) -> jax.Array:
    """Shares rows among the devices of one seed, inside ``over_seeds``.

    What follows is partitioned by the compiler, which adds up over the devices what
    sums over rows.

    Args:
        rows: [B, ...].
        num_devices: the mesh's second axis; rows that it does not divide are left.

    Returns:
        The same numbers.
    """
    if num_devices == 1 or rows.shape[0] % num_devices:
        return rows
    return jax.lax.with_sharding_constraint(rows, PartitionSpec(ROW))


def padded(array: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Repeats the last of [S, ...] until the mesh's first axis divides S."""
    missing = -len(array) % mesh.shape[SEED]
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def own_seeds(seeds: Sequence[int], mesh: Mesh) -> list[int]:
    """Returns the seeds that run on devices of this process, each once, in order."""
    places = padded(np.asarray(seeds), mesh)
    indices = by_seed(mesh).addressable_devices_indices_map(places.shape)
    own = {int(seed) for where in indices.values() if where for seed in places[where]}
    return [seed for seed in dict.fromkeys(seeds) if seed in own]


def num_own(seeds: jax.Array) -> int:
    """Counts the entries of [S] that are on devices of this process, padding too."""
    length = len(seeds)
    places = (shard.index[0].indices(length) for shard in seeds.addressable_shards)
    return len({place for where in places for place in range(*where)})


def place_own(
    arrays: Sequence[np.ndarray], seeds: Sequence[int], mesh: Mesh
) -> list[jax.Array]:
    """Puts what belongs to this process's seeds on its devices.

    Args:
        arrays: each [len(own_seeds), ...], in the order of ``own_seeds``.
        seeds: all S seeds of the run.
        mesh: from ``make_mesh``.

    Returns:
        Arrays over all processes, [S, ...] with S padded to the mesh.
    """
    places = padded(np.asarray(seeds), mesh)
    row_of = {seed: row for row, seed in enumerate(own_seeds(seeds, mesh))}

    def put(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return array[[row_of[int(seed)] for seed in places[index[0]]]]

        shape = (len(places), *array.shape[1:])
        return jax.make_array_from_callback(shape, by_seed(mesh), part)

    return [put(array) for array in arrays]


def place_all(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts [S, ...], which every process has whole, on the devices by seed."""
    whole = padded(array, mesh)
    return jax.make_array_from_callback(
        whole.shape, by_seed(mesh), lambda index: whole[index]
    )


def place_everywhere(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts an array, which every process has, on every device."""
    return jax.make_array_from_callback(
        array.shape, everywhere(mesh), lambda index: array[index]
    )


def gather(tree: Any) -> Any:
    """Copies arrays to every process, whole; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def is_first_process() -> bool:
    """Tells whether this process writes and speaks."""
    return jax.process_index() == 0


def from_first_process(tree: Any) -> Any:
    """Returns the first process's arrays in every process; all must call it.

    Args:
        tree: of numpy arrays; the others give any of the same shapes and dtypes.
    """
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)
