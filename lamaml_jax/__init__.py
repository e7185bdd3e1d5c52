"""La-MAML, look-ahead meta-learning for continual learning, in functional JAX."""

from lamaml_jax import diagnostics, losses, metrics, mixing
from lamaml_jax.balanced_reservoir import (
    BalancedReservoirState,
    make_balanced_reservoir,
)
from lamaml_jax.batching import join_replay, split_support, weigh_rows
from lamaml_jax.clipping import clip_meta_grads
from lamaml_jax.diagnostics import GradientVariance
from lamaml_jax.info import LamamlInfo
from lamaml_jax.inner import InnerTrace, adapt
from lamaml_jax.learner import Learner, LearnerState, lamaml_learner, observe_stream
from lamaml_jax.meta import MetaInfo, MetaValueAndGrad, meta_value_and_grad
from lamaml_jax.reservoir import Reservoir, ReservoirState, make_reservoir
from lamaml_jax.step_sizes import StepSizesState, scale_by_step_sizes
from lamaml_jax.transform import LamamlState, lamaml_transform
from lamaml_jax.types import (
    Batch,
    Key,
    LossFn,
    Mask,
    MetaParams,
    ModelState,
    ModelStateFn,
    Params,
    StepSizes,
)
from lamaml_jax.utility import UtilityState, scale_by_utility
from lamaml_jax.variance_reduction import (
    VarianceReduction,
    VarianceReductionState,
    variance_reduced,
)
from lamaml_jax.variants import cmaml, lamaml, sync_lamaml

__version__ = "0.1.0"

__all__ = [
    "BalancedReservoirState",
    "Batch",
    "GradientVariance",
    "InnerTrace",
    "Key",
    "LamamlInfo",
    "LamamlState",
    "Learner",
    "LearnerState",
    "LossFn",
    "Mask",
    "MetaInfo",
    "MetaParams",
    "MetaValueAndGrad",
    "ModelState",
    "ModelStateFn",
    "Params",
    "Reservoir",
    "ReservoirState",
    "StepSizes",
    "StepSizesState",
    "UtilityState",
    "VarianceReduction",
    "VarianceReductionState",
    "adapt",
    "clip_meta_grads",
    "cmaml",
    "diagnostics",
    "join_replay",
    "lamaml",
    "lamaml_learner",
    "lamaml_transform",
    "losses",
    "make_balanced_reservoir",
    "make_reservoir",
    "meta_value_and_grad",
    "metrics",
    "mixing",
    "observe_stream",
    "scale_by_step_sizes",
    "scale_by_utility",
    "split_support",
    "sync_lamaml",
    "variance_reduced",
    "weigh_rows",
]
