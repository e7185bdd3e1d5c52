"""What the installed command ``lamaml`` calls."""


def main() -> None:
    """Runs the command line; signals are answered while the rest is imported.

    Raises:
        SystemExit: with a sentence where the experiments' own packages are missing.
    """
    from experiments import stopping

    stopping.exit_at_once()
    try:
        from experiments.__main__ import main as run
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"lamaml: {error}; the command needs the extra of the same package: "
            "pip install 'lamaml_jax[experiments]'"
        ) from error
    run()
