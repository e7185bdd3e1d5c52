"""Online class-incremental runs: evaluations within tasks, ER-ACE, the network."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import lamaml_jax as lm
from experiments import networks, report, run_folder
from experiments.config import benchmarks, presets, request
from experiments.config.run_config import RunConfig, anytime_after, check_config
from experiments.methods import replay
from experiments.methods.problem import Problem
from experiments.report import figures
from experiments.report.entries import make_entries
from experiments.support.errors import UserError
from experiments.training import batches as feeding
from experiments.training import loop, placement, sessions
from experiments.training import one_seed as train
from experiments.training.inputs import place as place_inputs
from experiments.training.problem import make_problem
from experiments.training.programs import compile_programs, make_method
from experiments.training.storing import Part

# Six batches of ten and one of six in a task, evaluated after every other and the last.
ENDS = [2, 4, 6, 7]


def tiny(method="er", **changes):
    """Runs on scikit-learn's digits, which need no prepared data."""
    sizes = {"source": "digits", "num_tasks": 3, "rows_per_task": 66, "hidden": (16,)}
    benchmark = dataclasses.replace(
        benchmarks.BENCHMARKS["mnist-online"],
        **sizes | {"anytime_every": 2} | changes,
    )
    (hyper,) = presets.resolve("mnist-online", [method], {"capacity": 20})
    return RunConfig(benchmark, method, (0, 1), hyper, setting="agnostic")


def place(config):
    data = benchmarks.load(config.benchmark, config.seeds)
    return data, place_inputs(data, config.seeds, placement.make_mesh(1))


def results_of(config):
    _, inputs = place(config)
    (program,) = compile_programs([[config]], inputs)
    return list(loop.train(config, program, inputs))


def network(benchmark, image_shape, num_classes):
    form = networks.NetworkForm(
        image_shape,
        num_classes,
        benchmark.hidden,
        benchmark.channels,
        convolve=networks.convolve_by_matmul,
    )
    return networks.build(benchmark.network, form)


@pytest.fixture(scope="module")
def compiled():
    """The tiny run's data on the device, and its compiled program."""
    config = tiny()
    _, inputs = place(config)
    (program,) = compile_programs([[config]], inputs)
    return config, inputs, program


@pytest.fixture(scope="module")
def results(compiled):
    config, inputs, program = compiled
    return list(loop.train(config, program, inputs))


@pytest.mark.slow
def test_evaluations_within_tasks_are_those_of_a_plain_loop(results):
    config = tiny()
    check_config(config)
    _, inputs = place(config)
    fns = train.make_functions(config, inputs.form, "cpu")
    shared = inputs.shared
    own = jax.tree.map(lambda x: x[1], inputs.own)
    show = feeding.make_show(config, inputs.form)
    problem = make_problem(
        config,
        inputs.form,
        network(config.benchmark, inputs.form.image_shape, 10).apply,
    )
    learner = replay.er(problem, config.hyper)
    state = fns.init(shared, own)

    @jax.jit
    def observe(state, task, n):
        shown = show.epoch(shared._replace(task=task), own, 0)
        places, mask = jax.tree.map(lambda x: x[n], shown)
        key = jax.random.fold_in(feeding.task_key(own.seed, task), n)
        rows, key = show.rows(shared, own, key, places)
        return learner.observe(key, state, rows, mask)[0]

    evaluate = jax.jit(fns.evaluate)
    assert anytime_after(config) == ENDS
    for task in range(3):
        for n in range(7):
            state = observe(state, task, n)
            if n + 1 in ENDS:
                expected, _ = evaluate(
                    shared._replace(wanted=np.ones(3, bool)),
                    own._replace(state=state.weights),
                )
                found = results[task + 1].measures["anytime_accuracy"]
                found = found[1, ENDS.index(n + 1)]
                # Weights differ by float32 rounding, which may turn one of the rows.
                one_row = 1 / own.stream.test_rows.shape[1]
                np.testing.assert_allclose(
                    found[: task + 1], expected[: task + 1], atol=1.01 * one_row
                )
                assert np.isnan(found[task + 1 :]).all()


def test_the_last_evaluation_within_a_task_is_the_one_after_it(results):
    for result in results[1:]:
        within = result.measures["anytime_accuracy"][:, -1, : result.task + 1]
        np.testing.assert_array_equal(within, result.accuracy[:, : result.task + 1])


def test_evaluations_within_tasks_change_no_result(results):
    plain = results_of(tiny(anytime_every=None))
    for one, other in zip(results, plain, strict=True):
        np.testing.assert_allclose(one.accuracy, other.accuracy, atol=0.05)
        assert "anytime_accuracy" not in other.measures
    # Infos are means of floats that do not jump with a row.
    np.testing.assert_allclose(
        results[-1].info["loss"], plain[-1].info["loss"], rtol=1e-4
    )


def count_in_programs(config, inputs, operation):
    """How often it stands in training with and without evaluations, and in one."""
    benchmark = dataclasses.replace(config.benchmark, anytime_every=None)
    unwatched = dataclasses.replace(config, benchmark=benchmark)
    watched, plain = (
        make_method([each], inputs).functions for each in (config, unwatched)
    )
    programs = watched.train_task, plain.train_task, watched.evaluate
    return [str(fn.trace().jaxpr).count(operation) for fn in programs]


def test_a_task_that_ends_between_evaluations_compiles_the_learner_once(compiled):
    config, inputs, _ = compiled
    assert (ENDS[-1] - ENDS[-2]) % config.benchmark.anytime_every
    watched, plain, evaluation = count_in_programs(config, inputs, "dot_general")
    assert plain > 0
    assert watched == plain + evaluation


def test_seeds_side_by_side_evaluate_within_tasks_only_when_it_is_due(compiled):
    """A condition that differs between seeds would become a choice of both."""
    config, inputs, _ = compiled
    side_by_side = inputs._replace(platform="cuda")
    watched, plain, evaluation = count_in_programs(config, side_by_side, "cond[")
    assert watched == plain + 1 + evaluation


@pytest.mark.slow
def test_a_part_of_the_test_rows_has_rows_of_every_class():
    config = tiny(anytime_rows=10)
    data, inputs = place(config)
    fns = train.make_functions(config, inputs.form, "cpu")
    shared, own = inputs.shared, jax.tree.map(lambda x: x[0], inputs.own)
    own = own._replace(state=fns.init(shared, own), is_alive=True)
    found = jax.jit(fns.train_task)(shared._replace(task=0), own).anytime
    step = data.test_rows.shape[2] // 10
    chosen = data.test_rows[0, 0, ::step]
    fractions = np.asarray(found[:, 0]) * len(chosen)
    np.testing.assert_allclose(fractions, fractions.round(), atol=1e-5)
    classes, counts = np.unique(data.test_labels[chosen], return_counts=True)
    assert len(classes) == 2 and abs(np.diff(counts)) <= 1


def test_the_learner_is_told_of_no_task_and_predicts_among_all_classes():
    config = tiny()
    _, inputs = place(config)
    problem = make_problem(config, inputs.form, None)
    assert "task" not in problem.example
    rows, _ = feeding.make_show(config, inputs.form).rows(
        inputs.shared,
        jax.tree.map(lambda x: x[0], inputs.own),
        jax.random.key(0),
        {"task": jnp.zeros(2, int), "row": jnp.arange(2)},
    )
    assert rows.keys() == {"image", "label"}


@pytest.fixture(scope="module")
def folder(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("online") / "er"
    config, inputs, program = compiled
    with open(folder.parent / "shown.txt", "w") as file:
        watch = sessions.Watch(Console(file=file, width=200))
        sessions.run_group([Part(config, folder)], program, inputs, watch)
    return folder


def test_the_progress_shows_the_anytime_accuracy_so_far(folder):
    shown = (folder.parent / "shown.txt").read_text()
    *_, last = re.findall(r"AAA +(\S+) %", shown)
    final = run_folder.read(folder).summary["average_anytime_accuracy"]
    assert last == f"{100 * final.mean():.1f}"


def test_a_run_folder_holds_the_accuracies_and_their_summary(folder):
    run = run_folder.read(folder)
    accuracy = run.arrays["anytime_accuracy"]
    assert accuracy.shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(run.arrays["anytime_after"], ENDS)
    along, tasks = accuracy.reshape(2, 12, 3), np.repeat(np.arange(3), 4)
    for name in run_folder.ANYTIME_METRICS:
        # Read back as JSON, and checked against float64 when it was read.
        expected = getattr(lm.metrics, name)(along, tasks)
        np.testing.assert_allclose(run.summary[name], expected, atol=1e-6)


def test_a_summary_that_disagrees_is_an_error(folder, tmp_path):
    copy = tmp_path / "er"
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    summary = json.loads((copy / "summary.json").read_text())
    summary["worst_case_accuracy"][0] += 0.01
    (copy / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        run_folder.RunFolderError, match=r"gives worst_case_accuracy .* but arrays\.npz"
    ):
        run_folder.read(copy)


def test_table_and_figure_show_what_happens_at_any_time(folder, tmp_path):
    run = run_folder.read(folder)
    found = report.make_report([folder], tmp_path, console=Console(quiet=True))
    head, _, line, *_ = found.table_md.read_text().splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    percent = 100 * run.summary["average_anytime_accuracy"]
    expected = f"{percent.mean():.1f} ± {percent.std(ddof=1):.1f}"
    assert cells["AAA %"] == expected
    assert cells["| benchmark"] == "| mnist-online"
    assert "aaa_mean" in found.table_csv.read_text()
    names = {path.name for path in found.figures}
    assert "mnist-online_anytime.png" in names


def test_a_method_that_sees_all_tasks_is_a_level_line_at_its_end(folder):
    run = run_folder.read(folder)
    runs = [
        run._replace(config=run.config | {"method": name}) for name in ("iid", "er")
    ]
    (axes,) = figures.KINDS["anytime"]("any", make_entries(runs)).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    level = [text.get_text() for text in axes.texts if "at the end" in text.get_text()]
    assert level == ["IID, at the end"]
    retained = 100 * run.summary["retained_accuracy"].mean()
    assert any(list(y) == [retained, retained] for y in lines.values())
    assert len(lines["ER"]) == run.arrays["anytime_after"].size * run.accuracy.shape[1]


def test_runs_without_them_have_no_figure(folder):
    run = run_folder.read(folder)
    kept = {name: a for name, a in run.arrays.items() if "anytime" not in name}
    entries = make_entries([run._replace(arrays=kept)])
    assert figures.KINDS["anytime"]("any", entries) is None


# What is asked for ------------------------------------------------------------------


def test_online_benchmarks_are_agnostic_unless_told_otherwise():
    asked = request.make_request({"benchmark": "mnist-online", "method": ["er"]})
    assert asked.options["setting"] == "agnostic"
    assert request.run_name(asked) == "mnist-online"
    (config,) = request.configs(asked)
    assert config.setting == "agnostic"
    other = request.make_request(
        {"benchmark": "fashion-mnist-split", "method": ["er"], "setting": "agnostic"}
    )
    assert request.run_name(other) == "fashion-mnist-split-agnostic"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"setting": "aware"}, "mnist-online: online, with one pass and no task ids"),
        ({"epochs": 2}, "mnist-online: online, with one pass"),
        ({"probes": True}, "anytime_every: not with --probes"),
        ({"anytime_every": 101}, "anytime_every: expected 1 to 100, received 101"),
        ({"anytime_rows": 0}, "anytime_rows: expected 1 to"),
        ({"network": "resnet"}, "choose one of: published, reduced-resnet18"),
        ({"method": ["gem"]}, "method 'gem' needs task ids"),
    ],
)
def test_what_does_not_go_together_is_an_error(given, message):
    asked = {"benchmark": "mnist-online", "method": ["lamaml"]} | given
    with pytest.raises(UserError, match=message):
        request.configs(request.make_request(asked))


def test_er_ace_with_a_head_per_task_is_an_error():
    with pytest.raises(UserError, match="'er_ace' needs one head over all classes"):
        request.make_request({"benchmark": "cifar100-split", "method": ["er_ace"]})


# ER-ACE ------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_er_ace_descends_the_two_means():
    rng = np.random.default_rng(5)
    example = {
        "image": jax.ShapeDtypeStruct((4,), jnp.float64),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    }
    logits_fn = lambda weights, images: images @ weights
    problem = Problem(lambda weights, batch: 1 / 0, example, logits_fn, num_classes=5)
    (hyper,) = presets.resolve("mnist-online", ["er_ace"], {"glances": 1})
    hyper = dataclasses.replace(hyper, capacity=3, replay_size=3, max_grad_norm=1e9)
    learner = replay.er_ace(problem, hyper)
    observe = jax.jit(learner.observe)
    # Draws may repeat rows, so the memory holds one row three times.
    old = {"image": rng.normal(size=(1, 4)), "label": np.array([4], np.int32)}
    new = {"image": rng.normal(size=(2, 4)), "label": np.array([2, 3], np.int32)}
    weights = rng.normal(size=(4, 5))

    def loss(w, old_weight):
        every = np.arange(5)
        parts = []
        for rows, classes in ((new, [2, 3]), (old, every)):
            logits = jnp.asarray(rows["image"]) @ w
            total = jax.nn.logsumexp(logits[:, jnp.asarray(classes)], axis=1)
            own = logits[jnp.arange(len(rows["label"])), jnp.asarray(rows["label"])]
            parts.append(jnp.mean(total - own))
        return parts[0] + old_weight * parts[1]

    same = {name: np.repeat(rows, 3, axis=0) for name, rows in old.items()}
    empty = learner.init(jax.random.key(0), jnp.asarray(weights))
    memory = lm.make_reservoir(3, example).insert(
        empty.reservoir, same, np.arange(3), np.ones(3, bool)
    )
    for replayed, state in ((0, empty), (1, empty._replace(reservoir=memory))):
        moved, info = observe(jax.random.key(1), state, new)
        value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(weights), replayed)
        expected = weights - hyper.learning_rate * grad
        # float64, sums in another order; the clip divides by a norm.
        np.testing.assert_allclose(moved.weights, expected, rtol=1e-9)
        np.testing.assert_allclose(info.loss[0], value, rtol=1e-12)


# The network -------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "channels: [64, 128, 256, 512]"])
def test_the_reduced_resnet_has_the_published_layers(given, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"benchmark: cifar100-online\n{given}\n")
    benchmark = request.make_request(request.read_file(path)).benchmark
    first = 64 if given else 20
    model = network(benchmark, (32, 32, 3), 100)
    weights = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert weights.keys() == {"params"}  # averages are kept apart
    assert len(jax.tree.leaves(jax.eval_shape(model.running.init))) == 40
    sizes = [leaf.size for leaf in jax.tree.leaves(weights)]
    # A scale and a bias per normalised channel, no bias in a convolution.
    widths = (first, 2 * first, 4 * first, 8 * first)
    convolutions, norms = 27 * first, first
    for before, width in zip((first, *widths), widths, strict=False):
        convolutions += 9 * width * (before + 3 * width)
        norms += 4 * width
        if before != width:
            convolutions, norms = convolutions + before * width, norms + width
    assert sum(sizes) == convolutions + 2 * norms + 8 * first * 100 + 100
    logits = jax.eval_shape(model.apply, weights, jnp.zeros((7, 32, 32, 3)))
    assert logits.shape == (7, 100)
    head = networks.head_mask(weights)["params"]
    assert [name for name, layer in head.items() if any(jax.tree.leaves(layer))] == [
        "Dense_0"
    ]


def test_rows_do_not_depend_on_the_others_of_a_batch():
    model = networks.ReducedResNet18(3, (10, 20))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    weights = jax.jit(model.init)(jax.random.key(1), images)
    together = jax.jit(model.apply)(weights, images)
    alone = jax.jit(model.apply)(weights, images[2:3])
    # float32 convolutions of another batch size.
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-4, atol=1e-5)
    by_matmul = networks.ReducedResNet18(
        3, (10, 20), convolve=networks.convolve_by_matmul
    )
    np.testing.assert_allclose(
        jax.jit(by_matmul.apply)(weights, images), together, rtol=1e-4, atol=1e-5
    )
