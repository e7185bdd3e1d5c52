"""Networks of the benchmarks: the published ones as flax modules, and one's own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments.networks.convolution import convolution_for as convolution_for
from experiments.networks.convolution import (
    convolve_by_fewer_products as convolve_by_fewer_products,
)
from experiments.networks.convolution import convolve_by_matmul as convolve_by_matmul
from experiments.networks.convolution import fewer_products as fewer_products
from experiments.networks.convolution import is_worth_fewer as is_worth_fewer
from experiments.networks.initializers import INITIALIZERS
from experiments.networks.own import Pair as Pair
from experiments.networks.own import from_equinox as from_equinox
from experiments.networks.own import from_nnx as from_nnx
from experiments.networks.resnet import BatchNormResNet18, ReducedResNet18
from experiments.networks.running import check_plain, of_linen, takes_train
from experiments.schema.benchmark import PUBLISHED
from experiments.support import registry
from experiments.support.errors import UserError
from experiments.support.suggestions import unknown

REDUCED_RESNET_BATCHNORM = "reduced-resnet18-batchnorm"
"""The network of the online benchmarks as published, with stages of ``channels``."""
REDUCED_RESNET = "reduced-resnet18"
"""The same with GroupNorm, which treats each row alone."""


class Network(nn.Module):
    """The published networks: strided convolutions, if any, then a perceptron.

    Convolutions are 3x3 with stride 2 and padding 1; relu follows every layer but the
    last. Weights start Kaiming-normal (fan-in, gain sqrt 2) or Xavier-normal, biases at
    zero.
    """

    hidden: Sequence[int]
    """Widths of the hidden dense layers."""
    num_classes: int
    """Number of outputs."""
    channels: Sequence[int] = ()
    """Channels of the convolutions; none for flat images."""
    initializer: str = "kaiming"
    """Key of ``INITIALIZERS``."""
    dtype: Any = None
    """What is computed in, such as bfloat16; None: what weights and images have.
    Weights and logits stay float32."""
    convolve: Callable[..., jax.Array] | None = None
    """Such as ``convolve_by_matmul``; None for XLA's own convolution."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, ...] ([B, H, W, C] with convolutions) to logits [B, Y]."""
        kernel_init = INITIALIZERS[self.initializer]
        layer = functools.partial(
            nn.Conv,
            kernel_size=(3, 3),
            strides=2,
            padding=1,
            dtype=self.dtype,
            kernel_init=kernel_init,
            conv_general_dilated=self.convolve,
        )
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        x = images
        for channels in self.channels:
            x = nn.relu(layer(channels)(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(dense(width)(x))
        logits = dense(self.num_classes)(x)
        return logits if self.dtype is None else logits.astype(jnp.float32)


def head_mask(weights: dict) -> dict:
    """Marks the last layer.

    Args:
        weights: of a ``Network`` or ``ReducedResNet18``.

    Returns:
        Tree like ``weights`` of bools, True for the leaves of the last dense layer.
    """
    layers = weights["params"]
    dense = [int(name.split("_")[1]) for name in layers if name.startswith("Dense_")]
    last = f"Dense_{max(dense)}"
    return {
        "params": {
            name: jax.tree.map(lambda _, name=name: name == last, layer)
            for name, layer in layers.items()
        }
    }


class NetworkForm(NamedTuple):
    """What a network is built for."""

    image_shape: tuple[int, ...]
    """Of one row: [H, W, 1] where the data set has [H, W], else as it has it."""
    num_classes: int
    """Y, outputs."""
    hidden: tuple[int, ...] = ()
    """Of the benchmark, as are channels; for those who want them."""
    channels: tuple[int, ...] = ()
    initializer: str = "kaiming"
    """Key of ``INITIALIZERS``."""
    dtype: Any = None
    """What to compute in, None for float32; logits are float32."""
    convolve: Callable[..., jax.Array] | None = None
    """For ``conv_general_dilated`` of flax's convolutions, which are slow without it on
    CPUs and GPUs."""


class NetworkKind(NamedTuple):
    """How a network is built, and which weights are its last layer."""

    make: Callable[[NetworkForm], Any]
    """Returns a flax linen module, or whatever has ``init`` and ``apply`` of ``Pair``.
    """
    head_fn: Callable[[lm.Params], lm.Params] | None = None
    """``weights -> tree of bools``, True in the last layer; OML asks for it."""


def _published(form: NetworkForm) -> Network:
    return Network(
        form.hidden,
        form.num_classes,
        form.channels,
        form.initializer,
        dtype=form.dtype,
        convolve=form.convolve,
    )


def _resnet_of(kind: Callable[..., nn.Module]) -> Callable[[NetworkForm], nn.Module]:
    return lambda form: kind(
        form.num_classes,
        form.channels,
        form.initializer,
        dtype=form.dtype,
        convolve=form.convolve,
    )


NETWORKS: dict[str, NetworkKind] = {
    PUBLISHED: NetworkKind(_published, head_mask),
    REDUCED_RESNET: NetworkKind(_resnet_of(ReducedResNet18), head_mask),
    REDUCED_RESNET_BATCHNORM: NetworkKind(_resnet_of(BatchNormResNet18), head_mask),
}


def register(
    name: str,
    make: Callable[[NetworkForm], Any],
    head_fn: Callable[[lm.Params], lm.Params] | None = None,
) -> None:
    """Adds a person's own network to the command line.

    It may have BatchNorm and dropout: a linen module then has ``__call__(images,
    train)``, an nnx module's ``train()`` and ``eval()`` are called, an equinox module's
    ``__call__`` takes ``key``, and a ``Pair`` says what it carries and draws. What is
    random in a network is drawn anew with every batch that a learner observes.

    Args:
        name: for ``--network``.
        make: as ``NetworkKind`` has it; ``from_nnx`` and ``from_equinox`` make one.
        head_fn: likewise.

    Raises:
        UserError: the name is taken.
    """
    registry.add(NETWORKS, "network", name, NetworkKind(make, head_fn))


def check_network(name: str) -> None:
    """Checks that there is a network called ``name``.

    Raises:
        UserError: there is none; the message names a close one or all there are.
    """
    if name not in NETWORKS:
        raise UserError(unknown("network", name, NETWORKS))


def build(name: str, form: NetworkForm) -> Pair:
    """Builds the network called ``name``.

    Args:
        name: key of ``NETWORKS``.
        form: what it is for.

    Returns:
        Its two functions, which check a person's own.

    Raises:
        UserError: it is no network, keeps state, or has other outputs than classes.
    """
    check_network(name)
    model = NETWORKS[name].make(form)
    if not callable(getattr(model, "init", None)) or not hasattr(model, "apply"):
        raise UserError(
            f"network {name!r}: expected a flax linen module or another pair of `init` "
            f"and `apply`, received {type(model).__name__}"
        )

    if isinstance(model, nn.Module) and takes_train(model):
        model = Pair(*of_linen(name, model, form.image_shape))

    def init(key: lm.Key, images: jax.Array) -> lm.Params:
        weights = model.init(key, images)
        if isinstance(model, nn.Module):
            check_plain(name, model, weights, images)
        return weights

    def checked(logits: Any, images: jax.Array) -> jax.Array:
        expected = (images.shape[0], form.num_classes)
        if logits.shape != expected:
            raise UserError(
                f"network {name!r}: expected logits {list(expected)}, a row per image "
                f"and a column per class, received {list(logits.shape)}"
            )
        return logits

    def apply(weights: lm.Params, images: jax.Array, *key: lm.Key) -> jax.Array:
        return checked(model.apply(weights, images, *key), images)

    running, draws = None, False
    if not isinstance(model, nn.Module):
        running, draws = getattr(model, "running", None), getattr(model, "draws", False)
    if draws and running is None:
        raise UserError(
            f"network {name!r}: draws random numbers in training and does not say how "
            "it predicts without; give `running`"
        )
    return Pair(init, apply, running, draws)


def head_fn_of(name: str) -> Callable[[lm.Params], lm.Params]:
    """Returns what marks the last layer of the network called ``name``."""
    known = NETWORKS[name].head_fn

    def head_fn(weights: lm.Params) -> lm.Params:
        if known is None:
            raise UserError(
                f"network {name!r}: does not say which weights are its last layer; "
                "give head_fn when it is registered"
            )
        return known(weights)

    return head_fn
