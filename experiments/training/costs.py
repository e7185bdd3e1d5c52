"""What a run will cost, as its summary says."""

from experiments import methods
from experiments.config.run_config import RunConfig
from experiments.run_folder import GRADIENT_EVALUATIONS, MEMORY_BYTES
from experiments.training.inputs import DataForm
from experiments.training.problem import make_problem


def cost_record(config: RunConfig, form: DataForm) -> dict[str, float]:
    """Counts what a run costs.

    Args:
        config: what is run.
        form: sizes of its data.

    Returns:
        The fields of ``methods.cost.Cost`` under the names that run folders have for
        them; nothing for a method that does not say.
    """
    method = methods.METHODS.get(config.method)
    if method is None or method.cost is None:
        return {}
    found = method.cost(make_problem(config, form), config.hyper)
    return {
        GRADIENT_EVALUATIONS: found.gradient_evaluations,
        MEMORY_BYTES: found.memory_bytes,
    }
