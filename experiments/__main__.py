"""Where the command line begins, in a checkout and as the installed ``lamaml``."""

from experiments.support import stopping


def main() -> None:
    """Runs the command line; signals are answered while the rest is imported.

    Raises:
        SystemExit: with a sentence where the experiments' own packages are missing.
    """
    stopping.exit_at_once()  # first of all: the imports below take their time
    try:
        from experiments.cli.app import main as run
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"lamaml: {error}; the command needs the extra of the same package: "
            "pip install 'lamaml_jax[experiments]'"
        ) from error
    run()


if __name__ == "__main__":
    main()
