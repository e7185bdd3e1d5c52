"""A benchmark as a method sees it, and its network."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments import networks
from experiments.config.run_config import RunConfig
from experiments.data.targets import LOSSES
from experiments.methods import asymmetric
from experiments.methods.problem import Problem
from experiments.schema.benchmark import PUBLISHED
from experiments.training.inputs import DataForm


def make_problem(
    config: RunConfig,
    form: DataForm,
    apply_fn: Callable[..., jax.Array] | None = None,
    prepare: Callable[[jax.Array], jax.Array] | None = None,
) -> Problem:
    """Describes a benchmark to a method.

    Args:
        config: what to run.
        form: sizes of the data.
        apply_fn: ``(weights, images [B, ...]) -> logits [B, Y]``; None for a problem of
            which only the sizes are read.
        prepare: what is done to images before the network; None if it was done.
    """
    benchmark = config.benchmark
    classes_per_task = benchmark.classes_per_task
    loss = LOSSES[benchmark.loss]
    label = jax.ShapeDtypeStruct((), jnp.int32)
    if not loss.of_classes:
        label = jax.ShapeDtypeStruct((form.num_classes,), jnp.float32)
    example = {
        "image": jax.ShapeDtypeStruct(
            form.image_shape, form.dtype if benchmark.raw_memory else jnp.float32
        ),
        "label": label,
    }
    if config.is_aware:
        example["task"] = jax.ShapeDtypeStruct((), jnp.int32)

    def logits_fn(weights: lm.Params, images: jax.Array) -> jax.Array:
        assert apply_fn is not None
        return apply_fn(weights, images if prepare is None else prepare(images))

    def loss_fn(weights: Any, batch: Any) -> jax.Array:
        logits = logits_fn(weights, batch["image"])
        if classes_per_task is not None and config.is_aware:
            return lm.losses.multi_head_cross_entropy(
                logits, batch["label"], batch["task"], classes_per_task
            )
        if loss.is_asymmetric and asymmetric.CLASSES in batch:
            classes = batch[asymmetric.CLASSES]
            return lm.losses.masked_cross_entropy(logits, batch["label"], classes)
        return loss.fn(logits, batch["label"])

    return Problem(
        cast(Any, loss_fn),
        example,
        cast(Any, None if apply_fn is None else logits_fn),
        num_tasks=benchmark.num_tasks,
        rows_per_task=benchmark.rows_per_task,
        num_classes=form.num_classes,
        classes_per_task=classes_per_task,
        is_asymmetric=loss.is_asymmetric,
        head_fn=networks.head_fn_of(benchmark.network),
        has_few_convolutions=benchmark.network == PUBLISHED
        and len(benchmark.channels) > 0,
    )


def build_network(config: RunConfig, form: DataForm, platform: str) -> networks.Pair:
    """Builds the benchmark's network.

    Args:
        config: what to run.
        form: sizes of the data.
        platform: what it is compiled for, such as ``"cpu"``.

    Raises:
        UserError: it is no network.
    """
    benchmark = config.benchmark
    network = networks.NetworkForm(
        form.image_shape,
        form.num_classes,
        benchmark.hidden,
        benchmark.channels,
        config.hyper.initializer,
        dtype=None if config.precision == "float32" else config.precision,
        convolve=networks.convolution_for(platform),
    )
    return networks.build(benchmark.network, network)
