"""The convolution by products against XLA's own, and the networks' sizes."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import networks
from experiments.networks import convolution

CASES = {
    "published": ((5, 8, 8, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (1, 1))),
    "odd": ((2, 7, 10, 2), (3, 3, 2, 5), (2, 2), ((1, 1), (1, 1))),
    "uneven": ((1, 6, 9, 1), (2, 4, 1, 1), (1, 3), ((0, 2), (1, 0))),
    "one pixel": ((3, 1, 1, 2), (3, 3, 2, 2), (2, 2), ((1, 1), (1, 1))),
    "cropped": ((2, 6, 9, 2), (3, 3, 2, 2), (2, 2), ((1, 0), (1, 4))),
    "no padding before": ((2, 6, 9, 2), (3, 3, 2, 2), (2, 2), ((0, 1), (1, 0))),
    "every pixel": ((2, 8, 6, 2), (3, 3, 2, 3), (1, 1), ((1, 1), (1, 1))),
    "every odd pixel": ((2, 5, 7, 2), (3, 3, 2, 3), (1, 1), ((1, 1), (1, 1))),
    "every pixel, uneven": ((2, 6, 7, 2), (3, 3, 2, 3), (1, 1), ((0, 0), (2, 4))),
    "one way each": ((2, 5, 8, 2), (3, 3, 2, 3), (1, 2), ((0, 2), (1, 1))),
}
WAYS = networks.convolve_by_matmul, networks.convolve_by_fewer_products


@pytest.fixture(
    params=[
        pytest.param(
            case,
            marks=[]
            if case[0] in ("published", "odd", "every pixel")
            else pytest.mark.slow,
        )
        for case in itertools.product(CASES, WAYS)
    ],
    ids=lambda param: f"{param[0]}, {param[1].__name__}",
)
def case(request, x64, monkeypatch):
    name, convolve = request.param
    image_shape, kernel_shape, strides, padding = CASES[name]
    monkeypatch.setattr(convolution, "_MIN_CHANNELS", 1)
    monkeypatch.setattr(convolution, "_MIN_POSITIONS", 1)
    rng = np.random.default_rng(0)
    images, kernel = map(
        jnp.asarray, map(rng.normal, (0, 0), (1, 1), [image_shape, kernel_shape])
    )
    by_matmul = lambda x, k: convolve(x, k, strides, padding)
    by_xla = lambda x, k: jax.lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return images, kernel, by_matmul, by_xla


def test_a_convolution_by_products_is_a_convolution(case):
    images, kernel, by_matmul, by_xla = case
    expected = by_xla(images, kernel)
    got = by_matmul(images, kernel)
    assert got.shape == expected.shape and got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, atol=1e-13)


@pytest.mark.slow
def test_its_first_and_second_derivatives_too(case):
    images, kernel, by_matmul, by_xla = case

    def derivatives(conv):
        loss = lambda x, k: jnp.sum(jnp.tanh(conv(x, k)))
        grad = jax.grad(loss, argnums=(0, 1))
        along = jax.jvp(grad, (images, kernel), (jnp.sin(images), jnp.cos(kernel)))
        return jax.tree.leaves((grad(images, kernel), along))

    for got, expected in zip(derivatives(by_matmul), derivatives(by_xla), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize(("stride", "expected"), [(1, 16), (2, 25)])
def test_fewer_products_multiply_as_often_as_they_say(stride, expected):
    images, kernel = jnp.ones((4, 16, 16, 32)), jnp.ones((3, 3, 32, 8))

    def multiplications(convolve):
        conv = lambda x, k: convolve(x, k, (stride, stride), ((1, 1), (1, 1)))
        text = jax.jit(conv).lower(images, kernel).as_text()
        dots = r"dot_general.*?tensor<(\d+)x(\d+)x.*<\d+x(\d+)xf32>$"
        shapes = re.findall(dots, text, re.M)
        return sum(math.prod(map(int, shape)) for shape in shapes)

    few, many = map(multiplications, (networks.convolve_by_fewer_products, WAYS[0]))
    assert many == 4 * (16 // stride) ** 2 * 9 * 32 * 8
    assert few * 36 == many * expected


def test_bfloat16_computes_the_layers_and_keeps_weights_and_logits():
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    sizes = {"hidden": (16,), "num_classes": 5, "channels": (8,)}
    exact = networks.Network(**sizes)
    half = networks.Network(
        **sizes, dtype="bfloat16", convolve=networks.convolve_by_matmul
    )
    weights = half.init(jax.random.key(1), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {np.dtype("float32")}
    expected, got = exact.apply(weights, images), half.apply(weights, images)
    assert got.dtype == jnp.float32
    # bfloat16 keeps 8 bits: errors of 2**-9 per product, a few layers deep.
    difference = jnp.abs(got - expected).max() / jnp.abs(expected).max()
    assert 1e-4 < difference < 0.03
    program = str(jax.make_jaxpr(half.apply)(weights, images))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 3 and all("bf16" in line for line in products)
