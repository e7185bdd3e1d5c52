"""Before a command works: a person's own files, and jax with its devices and cache."""

from typing import Any

from experiments.support.cores import usable_cores
from experiments.support.errors import UserError


def use_devices(devices: int | None) -> None:
    """Imports jax with that many devices on a CPU; None for one per usable core."""
    from experiments.training import placement

    count = devices if devices is not None else usable_cores()
    if count < 1:
        raise UserError(f"--devices: expected at least 1, received {count}")
    placement.use_cpu_devices(count)


def load_plugins(plugin: list[str] | None, devices: int | None = None) -> None:
    """Imports a person's own files, which may compute with jax when they are."""
    if plugin:
        from experiments.config import plugins

        use_devices(devices)
        plugins.load(plugin)


def start_jax(devices: int | None, cache: bool, processes: Any = None) -> None:
    """Imports jax with its cache of programs, and a device per usable core of a CPU.

    Args:
        devices: of each process, on a CPU; None for one per usable core.
        cache: whether to keep compiled programs.
        processes: arguments of ``placement.join_processes``, if there are several.
    """
    from experiments.training import placement

    use_devices(devices)
    if cache:
        import platformdirs

        placement.cache_compilations(platformdirs.user_cache_path("lamaml_jax") / "jax")
    if processes is not None:
        placement.join_processes(*processes)
