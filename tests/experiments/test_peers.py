"""The PyTorch loop that is timed beside this library: it does the same, and says so."""

import dataclasses

import numpy as np
import pytest

from experiments.bench import ours, peer_forms, peers
from experiments.bench.job import Job, shortened
from experiments.bench.settings import Settings
from experiments.config import benchmarks, presets
from experiments.support.errors import UserError

torch = pytest.importorskip("torch", reason="peers are timed with PyTorch, not here")
peer_torch = pytest.importorskip("experiments.bench.peer_torch")


@pytest.fixture(scope="module")
def job():
    benchmark = shortened(benchmarks.get_benchmark("digits-rotations"), 60)
    return Job(benchmark, range(1), None, devices=1, inner_steps=5)


def images_job(**sizes):
    """Digits in two tasks of five classes, for the second order of CIFAR-100."""
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark("cifar100-split"),
        source="digits",
        num_tasks=2,
        rows_per_task=60,
        channels=(6, 5),
        hidden=(7,),
        augment=(),
        mean=(0.5,),
        std=(0.25,),
    )
    return Job(benchmark, range(1), None, devices=1, glances=1, **sizes)


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda update, **options: update)


@pytest.mark.usefixtures("uncompiled")
def test_every_form_of_the_loop_has_our_weights_and_step_sizes(job, monkeypatch):
    build = peer_forms.updates_of

    def forms_of_cuda(peer, torch, device, widths, hyper):
        return build(peer, torch, "cuda", widths, hyper)

    monkeypatch.setattr(peer_forms, "updates_of", forms_of_cuda)
    found = list(peers._make_peers(job, ours.make_rows(job), "cpu"))
    assert [peer.name for peer in found] == [
        "torch",
        "torch, queries batched",
        "torch.compile, queries batched",
        "torch.compile",
        "torch.compile, queries batched, CUDA graph",
    ]
    for peer in found:
        assert not peer.failure
        # Equal to the last bit would mean that something was compared with itself.
        assert 0 < peer.difference <= peers._TOLERANCE
        peer.train()


@pytest.mark.usefixtures("uncompiled")
def test_every_form_of_second_order_has_our_weights_and_step_sizes():
    job = images_job()
    found = list(peers._make_peers(job, ours.make_rows(job), "cpu"))
    names = ["torch", "torch, channels last", "torch.compile"]
    assert [peer.name for peer in found] == names
    for peer in found:
        assert not peer.failure and 0 < peer.difference <= peers._TOLERANCE
        peer.train()


def test_first_order_is_refused_where_second_is_asked_for(monkeypatch):
    images = pytest.importorskip("experiments.bench.peer_torch_images")

    def held_constant(loss, gradient, *rest):
        constant = lambda *args: [g.detach() for g in gradient(*args)]
        return whole(loss, constant, *rest)

    whole = images._meta_loss
    monkeypatch.setattr(images, "_meta_loss", held_constant)
    job = images_job()
    with pytest.raises(peers.DisagreementError, match="not the same algorithm"):
        next(peers._make_peers(job, ours.make_rows(job), "cpu"))


@pytest.mark.usefixtures("uncompiled")
def test_each_loop_is_kept_before_the_next_one_is_built(monkeypatch):
    make = peers._make_peers
    kept, built = [], []

    def watched(*args):
        for peer in make(*args):
            built.append(peer.name)
            assert len(kept) == len(built) - 1
            yield peer

    monkeypatch.setattr(peers, "_make_peers", watched)
    benchmark = benchmarks.get_benchmark("digits-rotations")
    results = peers.measure(Settings(benchmark, None, 1, True, kept.append))
    loops = [[row["loop"] for row in result.rows] for (result,) in (*kept, results)]
    both = ["lamaml_jax", "torch", "torch.compile"]
    assert loops == [both[:2], both, both]


def unclipped(grads, max_norm):
    return grads


def without_own_step(gradient, weights, rates, support, query):
    """Sums of a loop whose step sizes do not see the step just taken."""
    sums = peer_torch.looped_sums(gradient, weights, rates, support, query)
    last = [x[-1] for x in support]
    return sums[0], sums[1] - gradient(weights, *last) * gradient(weights, *query)


def test_a_form_that_cannot_be_compiled_is_named_and_left_out(job, monkeypatch):
    def no_compiler(update, **options):
        def compiled(*args):
            raise OSError("no compiler found")

        return compiled

    monkeypatch.setattr(torch, "compile", no_compiler)
    first, second = peers._make_peers(job, ours.make_rows(job), "cpu")
    assert first.name == "torch" and first.train and not first.failure
    assert second.train is None
    assert second.failure == "torch.compile failed: OSError('no compiler found')"


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("name", "other"), [("clipped", unclipped), ("looped_sums", without_own_step)]
)
def test_another_algorithm_is_refused(name, other, job, monkeypatch):
    make_update = peer_torch.make_update
    if name == "looped_sums":
        build = lambda gradient, hyper, sums: make_update(gradient, hyper, other)
        monkeypatch.setattr(peer_torch, "make_update", build)
    else:
        monkeypatch.setattr(peer_torch, name, other)
    with pytest.raises(
        peers.DisagreementError, match="torch is not the same algorithm"
    ):
        next(peers._make_peers(job, ours.make_rows(job), "cpu"))


def test_each_row_is_offered_once_and_every_glance_is_an_update():
    (hyper,) = presets.resolve("digits-rotations", ["lamaml"], {"capacity": 20})
    calls = []

    def update(weights, step_sizes, support, query):
        assert support[0].shape == (10, 1, 3)
        calls.append(len(query[1]))
        return weights, step_sizes

    learner = peer_torch.start(*2 * [torch.zeros(4)], hyper, [3], "cpu")
    images = torch.arange(120.0).reshape(4, 10, 3)
    labels = torch.arange(40).reshape(4, 10)
    done = peer_torch.train_rows(learner, update, hyper, images, labels)
    assert done == len(calls) == 4 * hyper.glances
    # The first query of all has nothing to replay.
    assert calls == [10] + [20] * (done - 1)
    assert learner.seen == 40
    stored = learner.memory.labels
    assert len(set(stored.tolist())) == 20
    torch.testing.assert_close(learner.memory.images[:, 0], 3.0 * stored)


def test_the_reservoir_keeps_every_row_with_the_same_probability():
    """400 draws of 5 rows out of 20: each row is kept 100 times, standard deviation
    8.7; the bound is four of them."""
    (hyper,) = presets.resolve("digits-rotations", ["lamaml"], {"capacity": 5})
    counts = np.zeros(20)
    rows = torch.zeros(20, 1), torch.arange(20)
    for seed in range(400):
        learner = peer_torch.start(*2 * [torch.zeros(1)], hyper, [1], "cpu")
        learner.random.seed(seed)
        peer_torch.remember(learner, *rows)
        counts[learner.memory.labels.numpy()] += 1
    assert np.all(np.abs(counts - 100) < 35)


def test_a_benchmark_without_a_peer_is_refused():
    benchmark = benchmarks.get_benchmark("fashion-mnist-split")
    settings = Settings(benchmark, None, 1, True)
    with pytest.raises(UserError, match="fashion-mnist-split has no peer"):
        peers.measure(settings)
