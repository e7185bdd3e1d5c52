"""The benchmarks of speed and memory: what they count, and that they finish."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from experiments import bench
from experiments.bench import cost, meta_gradient, timing, update
from experiments.bench.job import Job, shortened
from experiments.bench.scaling import device_counts
from experiments.bench.settings import Settings
from experiments.cli import app as command_line
from experiments.cli import starting
from experiments.config import benchmarks, presets
from experiments.support.errors import UserError

COLUMNS = {
    "update": [{"cpu_ms_per_meta_update", "percent_of_matmul_peak", "compile_s"}],
    "meta-gradient": [{"inner_steps", "reverse", "sqrt", "first_order"}] * 3,
    "cost": [{"weights", "rates", "first_order_ms", "second_order_over_weights"}],
    "convolution": [{"rows", "one_product_ms", "fewer_products_ms", "ratio"}],
    "reservoir": [{"capacity", "us_per_batch", "over_first"}],
    "stream": [
        {"task", "over_first"},
        {"tasks_done", "resident_mib"},
        {"stream_rows", "over_first"},
    ],
    "compile": [{"start", "until_first_update_s"}],
    "scaling": [{"devices", "seeds", "meta_updates_per_s"}],
    "accelerator": [
        {"matmul_tflop_per_s_default", "matmul_tflop_per_s_highest"},
        {"seeds", "train_s", "over_one_seed"},
    ],
    "peers": [{"loop", "ms_per_meta_update", "ratio"}],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COLUMNS)
def test_a_quick_run_finishes_and_has_its_columns(name, tmp_path, monkeypatch, capsys):
    if name == "peers":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    file = tmp_path / "bench.json"
    arguments = ["bench", name, "--quick", "--rounds", "1"]
    if name in bench.WITHOUT_DATA:  # and so none has to be prepared
        arguments += ["--data-dir", str(tmp_path)]
    else:
        arguments += ["-b", "digits-rotations"]
    monkeypatch.setattr("sys.argv", ["experiments", *arguments, "--json", str(file)])
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of new processes
    # This process has its devices, however many cores the machine has.
    monkeypatch.setattr(starting, "start_jax", lambda devices, cache: None)
    with pytest.raises(SystemExit) as stop:
        command_line.main()
    assert not stop.value.code
    printed = capsys.readouterr().out
    records = bench.read(file)
    assert list(records) == [name]
    environment, results = records[name]
    assert environment["versions"]["jax"] == jax.__version__
    for result, columns in zip(results, COLUMNS[name], strict=True):
        assert columns <= set(result.rows[0])
        for row in result.rows:
            numbers = [v for v in row.values() if isinstance(v, int | float)]
            assert np.all(np.isfinite(numbers))
            assert row.keys() == result.rows[0].keys()
        assert result.title.split()[0] in printed


def test_all_names_have_a_test():
    assert set(COLUMNS) == set(bench.BENCHES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["velocity"], "unknown bench 'velocity'; choose of: update"),
        (["update", "--rounds", "0"], "--rounds: expected at least 1"),
        (["stream", "-b", "cifar100-split"], "cifar100"),
    ],
)
def test_mistakes_end_in_one_error(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["experiments", "bench", *arguments])
    with pytest.raises(SystemExit) as stop:
        command_line.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_products_of_a_first_order_meta_update_are_counted():
    benchmark = benchmarks.get_benchmark("digits-rotations")
    (hyper,) = presets.resolve("digits-rotations", ["lamaml"], {})
    # 64-100-100-10: 210 rows, 6 products on 10,000 + 1,000 weights and 4 on 6,400
    expected = 210 * (6 * 11_000 + 4 * 6_400)
    assert update.flops_per_meta_update(benchmark, hyper, (8, 8), 10) == expected


def test_products_of_a_second_order_convolution_are_counted():
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark("cifar100-split"), channels=(2,), hidden=()
    )
    (hyper,) = presets.resolve("cifar100-split", ["lamaml"], {})
    query = hyper.batch_size + hyper.replay_size
    rows = 4 * hyper.batch_size + hyper.inner_steps * query
    # 5x5x3 becomes 3x3x2 by 3x3 kernels, then 18 inputs of 7 classes
    convolution, dense = 9 * 3 * 2 * 9, 18 * 7
    expected = rows * (4 * convolution + 6 * dense)
    assert update.flops_per_meta_update(benchmark, hyper, (5, 5, 3), 7) == expected


def test_products_of_a_network_with_averages_are_counted():
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark("cifar100-online"), channels=(2, 3)
    )
    (hyper,) = presets.resolve("cifar100-online", ["lamaml"], {})
    query = hyper.batch_size + hyper.replay_size
    rows = 4 * hyper.batch_size + hyper.inner_steps * query
    # 4x4x3, the stem, two blocks of 2 channels; 2x2x3 after one of stride 2
    stem, first = 16 * 9 * 3 * 2, 4 * 16 * 9 * 2 * 2
    second = 4 * (9 * 2 * 3 + 2 * 3) + 3 * 4 * 9 * 3 * 3
    expected = rows * (4 * stem + 6 * (first + second + 3 * 7))
    assert update.flops_per_meta_update(benchmark, hyper, (4, 4, 3), 7) == expected


@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
@pytest.mark.parametrize("most", [1, 20, 60, 64])
def test_a_shortened_task_has_whole_batches_and_all_of_its_classes(name, most):
    benchmark = benchmarks.get_benchmark(name)
    (hyper,) = presets.resolve(name, ["lamaml"])
    rows = shortened(benchmark, most).rows_per_task
    assert rows % hyper.batch_size == 0
    if benchmark.classes_per_task:
        assert rows % benchmark.classes_per_task == 0
    assert rows <= max(most, hyper.batch_size * (benchmark.classes_per_task or 1))


@pytest.mark.slow
def test_updates_of_an_online_benchmark_are_timed(tmp_path):
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark("digits-rotations"),
        **dict(stream="split", classes_per_task=2, num_tasks=5, rows_per_task=60),
        **dict(is_online=True, anytime_every=2),
    )
    job = Job(benchmark, range(1), tmp_path)
    assert not job.config.is_aware and job.config.benchmark.anytime_every is None
    state = job.train(0, 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.weights))


def test_works_take_turns_and_the_first_round_does_not_count():
    calls = []
    works = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    timings = timing.alternate(works, 2)
    assert calls == ["a", "b"] * 3
    assert [len(each) for each in timings.values()] == [2, 2]


def test_ratio_is_the_median_of_rounds_not_the_ratio_of_medians():
    slow, fast = ([timing.Timing(t, 0) for t in ts] for ts in ([2, 30, 6], [1, 10, 2]))
    assert timing.median_ratio(slow, fast) == 3
    assert timing.median_wall_s(slow) == 6


def test_an_accelerator_measures_large_models_by_the_wall_clock(monkeypatch):
    small = tuple(cost._Case(width, 2, 3) for width in (20, 30))
    monkeypatch.setattr(cost, "_LARGE_CASES", small[1:])
    monkeypatch.setattr(cost, "_CASES", small[:1])
    monkeypatch.setattr(cost, "_LEAST_S", 0.0)  # so that a stretch is one update
    times = [timing.Timing(wall_s=2.0, cpu_s=3.0)]
    monkeypatch.setattr(timing, "alternate", lambda works, rounds: {"": times})
    kept = []
    settings = Settings(None, None, 1, False, kept.append)
    num_weights = [n * (784 + n + 10 + 2) + 10 for n in (30, 20)]
    for backend, milliseconds, expected in (
        ("gpu", 2000.0, num_weights),
        ("cpu", 3000.0, num_weights[1:]),
    ):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        (result,) = cost.measure(settings)
        assert [row["weights"] for row in result.rows] == expected
        assert {row["first_order_ms"] for row in result.rows} == {milliseconds}
        assert [len(each.rows) for (each,) in kept] == [1, 2][: len(expected)]
        kept.clear()


def test_what_an_accelerator_has_no_room_for_is_compiled_only(monkeypatch):
    memory = {"bytes_limit": 2**20}
    device = types.SimpleNamespace(memory_stats=lambda: memory)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    settings = Settings(None, None, 1, True)
    row = cost._measure_case(cost._Case(100, 2, 3), settings)
    assert row["second_order_ms"] is None and row["second_order_mib"] > 0.9
    memory["bytes_limit"] = 2**30
    assert cost._measure_case(cost._Case(100, 2, 3), settings)["second_order_ms"] > 0


def test_meta_gradients_are_kept_case_by_case(monkeypatch):
    measured = lambda case, settings: [{"steps": case.inner_steps}] * 3
    monkeypatch.setattr(meta_gradient, "_measure_case", measured)
    kept = []
    results = meta_gradient.measure(Settings(None, None, 1, False, kept.append))
    assert [len(each[0].rows) for each in kept] == list(range(1, 32))
    assert kept[-1] == results and len(results) == 3


def test_device_counts_are_powers_of_two_and_all():
    assert device_counts(1) == [1]
    assert device_counts(6) == [1, 2, 4, 6]


def test_records_of_other_names_stay(tmp_path):
    file = tmp_path / "bench.json"
    old, new, other = (
        bench.Record({"device": device}, [bench.Result("t", [{"a": n}])])
        for n, device in enumerate(("old", "new", "other"))
    )
    bench.write(file, {"update": old, "stream": other})
    bench.write(file, {"update": new})
    assert bench.read(file) == {"update": new, "stream": other}
    file.write_text("not ours")
    with pytest.raises(UserError, match="no benchmark record"):
        bench.write(file, {"update": new})
    assert file.read_text() == "not ours"


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 2}', None])
def test_damaged_records_are_refused(content, tmp_path):
    file = tmp_path / "bench.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match="no benchmark record"):
        bench.read(file)


def test_records_of_another_version_are_refused(tmp_path):
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="another version"):
        bench.read(file)
