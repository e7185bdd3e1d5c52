"""Networks of the benchmarks: the published ones as flax modules, and one's own."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments import registry
from experiments.benchmarks import PUBLISHED, REDUCED_RESNET
from experiments.errors import UserError
from experiments.suggestions import did_you_mean

INITIALIZERS = {
    "kaiming": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "xavier": nn.initializers.glorot_normal(),
}
_MIN_CHANNELS = 32
_MIN_POSITIONS = 256
"""From which on fewer products are faster: with 160 channels those of 1,280 positions
take 0.76 of the time, of 320 0.80, of 128 0.97, of 32 1.16 (`bench convolution`)."""


def convolve_by_matmul(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: object,
) -> jax.Array:
    """Convolves as one matrix product over the patches under the kernel.

    XLA has no fast convolution for a CPU inside a loop, nor for the gradients of one:
    a second-order meta-update of the Tiny ImageNet network takes 25 seconds with it,
    and 1.2 with this, whose derivatives of all orders are products and slices too.

    Under ``vmap`` over seeds, each with a kernel of its own, XLA's is a grouped
    convolution. On a GPU the gradient of its kernel slides a window as large as the
    image, the output's gradient spread out with zeros: compiled for five seeds of the
    CIFAR-100 network, a second-order meta-update multiplies 3.8 times as often as with
    this, which is a batched product there.

    Args:
        images: [B, H, W, C].
        kernel: [h, w, C, D].
        strides: down and to the right.
        padding: zeros before and after, for rows and for columns.
        **options: of ``jax.lax.conv_general_dilated`` as flax gives them; left at
            their defaults.

    Returns:
        [B, H', W', D], as ``jax.lax.conv_general_dilated`` has it for NHWC and HWIO.
    """
    del options
    height, width = kernel.shape[:2]
    down, right = strides
    images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    last = images.shape[1] - height, images.shape[2] - width
    parts = [
        images[:, i : i + last[0] + 1 : down, j : j + last[1] + 1 : right]
        for i in range(height)
        for j in range(width)
    ]
    patches = jnp.concatenate(parts, axis=-1)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return _multiply(patches, matrix)


def _multiply(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, H, W, D]; of two axes, products' gradients are too."""
    product = images.reshape(-1, matrix.shape[0]) @ matrix
    return product.reshape(*images.shape[:3], -1)


def _split(x: jax.Array, axis: int) -> list[jax.Array]:
    """The slices along an axis. The gradient of all is one concatenation."""
    parts = jnp.split(x, x.shape[axis], axis)
    return [jax.lax.squeeze(part, (axis,)) for part in parts]


def _inputs_of(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Of each four rows the inputs s0 - s2 and s1; s2; s4 - s2 and s3."""
    fours = x.reshape(*x.shape[:axis], -1, 4, *x.shape[axis + 1 :])
    s1, s2, s3, s4 = _split(fours, axis + 1)
    above = jax.lax.slice_in_dim(s4, 0, s4.shape[axis] - 1, axis=axis)
    zeros = jnp.zeros_like(jax.lax.slice_in_dim(s4, 0, 1, axis=axis))
    s0 = jnp.concatenate([zeros, above], axis)
    join = lambda *parts: jnp.concatenate(parts, -1)
    return join(s0 - s2, s1), s2, join(s4 - s2, s3)


def _factors_of(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """What these are multiplied with, of a kernel [3, ..., C, D]: [..., C or 2C, D]."""
    k0, k1, k2 = _split(kernel, 0)
    join = lambda *parts: jnp.concatenate(parts, -2)
    return join(k0, k1), k0 + k2, join(k2, k1)


def _outputs_of(products: Sequence[jax.Array], axis: int) -> jax.Array:
    """Adds the products up to each two rows of the output."""
    first, both, second = products
    pairs = jnp.stack([first + both, both + second], axis + 1)
    return pairs.reshape(*first.shape[:axis], -1, *first.shape[axis + 1 :])


def fewer_products(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """A 3x3 convolution of stride 2 with 25 multiplications in the place of 36.

    Along one axis two outputs see five inputs: the last, s0, of the four before, and
    the next four. With m = (k0 + k2) s2::

        y0 = k0 s0 + k1 s1 + k2 s2 = k0 (s0 - s2) + k1 s1 + m
        y1 = k0 s2 + k1 s3 + k2 s4 = k2 (s4 - s2) + k1 s3 + m

    which are five products instead of six, and along both axes 25 instead of 36. Their
    derivatives of all orders are as much fewer. All is summed up in another order, so
    that numbers differ by roundings.

    Args:
        images: [B, H, W, C].
        kernel: [3, 3, C, D].
        strides: 2 and 2.
        padding: one row and column of zeros before, any number after.

    Returns:
        [B, H', W', D].

    References:
        Winograd 1980, Arithmetic Complexity of Computations: F(2, 2) of the odd rows.
        Lavin and Gray 2016, arXiv:1509.09308: nested for two axes.
    """
    sizes = images.shape[1:3]
    outputs = _output_sizes(sizes, kernel, strides, padding)
    # As many fours of rows and columns as pairs of outputs; a negative number crops
    after = [(0, 2 * (n + n % 2) - m, 0) for n, m in zip(outputs, sizes, strict=True)]
    none, zero = (0, 0, 0), jnp.zeros((), images.dtype)
    images = jax.lax.pad(images, zero, [none, *after, none])
    rows = []
    for part, factors in zip(_inputs_of(images, 1), _factors_of(kernel), strict=True):
        pairs = zip(_inputs_of(part, 2), _factors_of(factors), strict=True)
        products = [_multiply(inputs, matrix) for inputs, matrix in pairs]
        rows.append(_outputs_of(products, 2))
    return _outputs_of(rows, 1)[:, : outputs[0], : outputs[1]]


def is_worth_fewer(positions: int, channels: int) -> bool:
    """Whether ``fewer_products`` is faster: what else it does costs time as well.

    Args:
        positions: of the output, in all rows.
        channels: of the images.
    """
    return positions >= _MIN_POSITIONS and channels >= _MIN_CHANNELS


def convolve_by_fewer_products(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: object,
) -> jax.Array:
    """``fewer_products`` where it can be used and is faster, else by one product.

    Args:
        images: as in ``convolve_by_matmul``, and so are the others.
        kernel: [h, w, C, D].
        strides: down and to the right.
        padding: zeros before and after, for rows and for columns.
        **options: as flax gives them; left at their defaults.

    Returns:
        [B, H', W', D].
    """
    height, width = _output_sizes(images.shape[1:3], kernel, strides, padding)
    fits = kernel.shape[:2] == (3, 3) and tuple(strides) == (2, 2)
    fits &= all(before == 1 for before, _ in padding)
    if fits and is_worth_fewer(images.shape[0] * height * width, images.shape[-1]):
        return fewer_products(images, kernel, strides, padding)
    return convolve_by_matmul(images, kernel, strides, padding, **options)


def _output_sizes(
    sizes: Sequence[int],
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[int]:
    zipped = zip(sizes, kernel.shape, strides, padding, strict=False)
    return [(n + sum(ends) - window) // step + 1 for n, window, step, ends in zipped]


def convolution_for(platform: str) -> Callable[..., jax.Array] | None:
    """Returns what convolves fastest on a platform: None is XLA's own."""
    if platform == "tpu":
        return None
    return convolve_by_fewer_products if platform == "cpu" else convolve_by_matmul


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


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, each normalised, relu after either."""

    width: int
    stride: int
    convolution: Callable[..., nn.Conv]
    normalise: Callable[..., nn.GroupNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        narrow = functools.partial(self.convolution, kernel_size=(3, 3), padding=1)
        y = nn.relu(self.normalise()(narrow(self.width, strides=self.stride)(x)))
        y = self.normalise()(narrow(self.width)(y))
        if x.shape != y.shape:
            match = self.convolution(
                self.width, kernel_size=(1, 1), padding=0, strides=self.stride
            )
            x = self.normalise()(match(x))
        return nn.relu(x + y)


class ReducedResNet18(nn.Module):
    """The reduced ResNet-18 of online learning, with GroupNorm in BatchNorm's place.

    A 3x3 convolution, stages of two blocks, the mean over all positions, a dense layer.
    The published one (Lopez-Paz and Ranzato 2017, arXiv:1706.08840, of 20 filters)
    normalises by BatchNorm, whose running averages are a state beside the weights. In
    its place is GroupNorm over ten channels at a time, which needs no state and treats
    each row alone; accuracies do not compare digit by digit with those of BatchNorm.
    """

    num_classes: int
    """Number of outputs."""
    widths: Sequence[int] = (20, 40, 80, 160)
    """Channels of the stages, multiples of ten; all but the first halve the image."""
    initializer: str = "kaiming"
    """Key of ``INITIALIZERS``."""
    dtype: Any = None
    """As in ``Network``."""
    convolve: Callable[..., jax.Array] | None = None
    """As in ``Network``."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, Y]."""
        kernel_init = INITIALIZERS[self.initializer]
        convolution = functools.partial(
            nn.Conv,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kernel_init,
            conv_general_dilated=self.convolve,
        )
        normalise = functools.partial(
            nn.GroupNorm, num_groups=None, group_size=10, dtype=self.dtype
        )
        stem = convolution(self.widths[0], kernel_size=(3, 3), padding=1)
        x = nn.relu(normalise()(stem(images)))
        for stage, width in enumerate(self.widths):
            for stride in (1 if stage == 0 else 2, 1):
                x = _Block(width, stride, convolution, normalise)(x)
        x = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=kernel_init)
        logits = head(x)
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


class Pair(NamedTuple):
    """A network as two functions; a flax linen module has the same two."""

    init: Callable[[lm.Key, jax.Array], lm.Params]
    """``init(key, images [1, ...]) -> weights``."""
    apply: Callable[[lm.Params, jax.Array], jax.Array]
    """``apply(weights, images [B, ...]) -> logits [B, Y]``."""


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


def _reduced_resnet(form: NetworkForm) -> ReducedResNet18:
    return ReducedResNet18(
        form.num_classes,
        form.channels,
        form.initializer,
        dtype=form.dtype,
        convolve=form.convolve,
    )


NETWORKS: dict[str, NetworkKind] = {
    PUBLISHED: NetworkKind(_published, head_mask),
    REDUCED_RESNET: NetworkKind(_reduced_resnet, head_mask),
}


def register(
    name: str,
    make: Callable[[NetworkForm], Any],
    head_fn: Callable[[lm.Params], lm.Params] | None = None,
) -> None:
    """Adds a person's own network to the command line.

    Its weights are all that it has: no running state such as BatchNorm's, and no
    dropout.

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
        known = f"; choose one of: {', '.join(NETWORKS)}"
        raise UserError(
            f"unknown network {name!r}{did_you_mean(name, NETWORKS) or known}"
        )


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

    def init(key: lm.Key, images: jax.Array) -> lm.Params:
        weights = model.init(key, images)
        if isinstance(model, nn.Module) and (state := set(weights) - {"params"}):
            raise UserError(
                f"network {name!r}: has state besides its weights, {', '.join(state)}, "
                "which runs do not carry; normalise without, such as by GroupNorm"
            )
        return weights

    def apply(weights: lm.Params, images: jax.Array) -> jax.Array:
        logits = model.apply(weights, images)
        expected = (images.shape[0], form.num_classes)
        if logits.shape != expected:
            raise UserError(
                f"network {name!r}: expected logits {list(expected)}, a row per image "
                f"and a column per class, received {list(logits.shape)}"
            )
        return logits

    return Pair(init, apply)


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


def _named(tree: Any) -> dict[str, jax.Array]:
    """Names the leaves of a tree, so that weights are plain whatever made them."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _like(tree: Any, weights: Mapping[str, jax.Array]) -> Any:
    """Puts named leaves back into a tree of that form."""
    return jax.tree.unflatten(
        jax.tree.structure(tree), [weights[n] for n in _named(tree)]
    )


def from_nnx(make: Callable[..., Any]) -> Callable[[NetworkForm], Pair]:
    """Makes what ``register`` takes of flax nnx modules.

    Args:
        make: ``make(form, rngs) -> nnx.Module`` that maps images [B, ...] to logits.

    Returns:
        A function of the form; weights are the module's ``nnx.Param`` by name.
    """
    from flax import nnx

    def parts(form: NetworkForm, key: lm.Key) -> tuple[Any, Any, Any]:
        graph, weights, rest = nnx.split(make(form, nnx.Rngs(key)), nnx.Param, ...)
        return graph, weights, rest

    def build_pair(form: NetworkForm) -> Pair:
        def apply(weights: lm.Params, images: jax.Array) -> jax.Array:
            graph, like, rest = parts(form, jax.random.key(0))
            return nnx.merge(graph, _like(like, weights), rest)(images)

        return Pair(lambda key, images: _named(parts(form, key)[1]), apply)

    return build_pair


def from_equinox(make: Callable[..., Any]) -> Callable[[NetworkForm], Pair]:
    """Makes what ``register`` takes of equinox modules.

    Args:
        make: ``make(form, key) -> eqx.Module`` that maps one row to its logits [Y].

    Returns:
        A function of the form; weights are the module's floating arrays by name.
    """
    import equinox as eqx

    def parts(form: NetworkForm, key: lm.Key) -> tuple[Any, Any]:
        return eqx.partition(make(form, key), eqx.is_inexact_array)

    def build_pair(form: NetworkForm) -> Pair:
        def apply(weights: lm.Params, images: jax.Array) -> jax.Array:
            like, rest = parts(form, jax.random.key(0))
            return jax.vmap(eqx.combine(_like(like, weights), rest))(images)

        return Pair(lambda key, images: _named(parts(form, key)[0]), apply)

    return build_pair
