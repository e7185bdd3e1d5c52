import base64
import csv
import io
import itertools
import pathlib
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from rich.console import Console
from stored_runs import cost_of, entry_of, example, store_run

from experiments import bench, report, run_folder
from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig, config_record
from experiments.report import captions, figures, provenance, published, wording
from experiments.report.entries import make_entries, variant_labels
from experiments.report.figures import common, training
from experiments.support import styles
from experiments.support.errors import UserError

NAN = float("nan")


def make(tmp_path, *folders, **options):
    console = Console(file=io.StringIO(), width=80)
    files = report.make_report(folders, tmp_path / "out", console=console, **options)
    return files, console.file.getvalue()


def table_rows(files):
    return list(csv.DictReader(io.StringIO(files.table_csv.read_text())))


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "write", lambda *args: [])


@pytest.mark.usefixtures("no_figures")
class TestTable:
    def test_values_are_those_computed_by_hand(self, tmp_path):
        files, shown = make(tmp_path, store_run(tmp_path / "er", capacity=100))
        # RA 60, 65, 70: mean 65, sd 5. BTI: (-30 + 0) / 2, (-20) / 2, (-10) / 2.
        # LA differs by no seed: (80 + 70) / 2. FWT: 40 - 10.
        text = files.table_md.read_text()
        expected = "65.0 ± 5.0 | -10.0 ± 5.0 | 75.0 ± 0.0 | 30.0 ± 0.0 | 3 |"
        assert f"| digits-rotations | ER | {expected}" in text
        assert "| 100 | 5 |  |  | 12 s |" in text
        line = "ER 65.0 ± 5.0 -10.0 ± 5.0 75.0 ± 0.0 3 12.3"
        assert line in " ".join(shown.split())
        (row,) = table_rows(files)
        assert float(row["ra_mean"]) == pytest.approx(65, abs=1e-4)
        assert float(row["bti_sd"]) == pytest.approx(5, abs=1e-4)
        assert (row["method"], row["label"], row["num_seeds"]) == ("er", "ER", "3")
        assert row["authors_ra"] == ""
        assert "authors'" not in shown, "a column that is always empty"
        head, rule, line, *_ = text.splitlines()
        assert "authors'" not in head
        assert head.count("|") == rule.count("|") == line.count("|")

    def test_one_seed_has_no_sd(self, tmp_path):
        accuracy, initial = example()
        folder = store_run(tmp_path / "er", "er", accuracy[:1], initial[:1])
        files, shown = make(tmp_path, folder)
        assert "| 60.0 | -15.0 |" in files.table_md.read_text()
        assert "60.0 -15.0" in " ".join(shown.split())
        assert "n/a" not in shown
        assert table_rows(files)[0]["ra_sd"] == ""

    def test_a_diverged_seed_is_named_and_the_mean_is_over_the_others(self, tmp_path):
        files, shown = make(tmp_path, store_run(tmp_path / "er", lost=[1]))
        text = files.table_md.read_text()
        assert "| 65.0 ± 7.1 |" in text
        assert "| 2 |" in text
        assert "seed 1 diverged; mean over the other 2" in text
        assert "seed 1 diverged; mean over the other 2" in shown
        assert "2/3" in shown
        assert table_rows(files)[0]["diverged_seeds"] == "1"

    def test_a_row_says_what_the_method_costs(self, tmp_path):
        cost = cost_of(105.04, 628_800)
        files, shown = make(tmp_path, store_run(tmp_path / "er", cost=cost))
        assert "| 105 | 0.63 | 12 s |" in files.table_md.read_text()
        (row,) = table_rows(files)
        assert float(row["gradient_evaluations_per_row"]) == 105.04
        assert int(row["memory_bytes"]) == 628_800
        assert "75.0 ± 0.0 3 105 12.3" in " ".join(shown.split())
        assert "| ER | 105, 12 s, 0.63 MB |" in files.comparison_md.read_text()

    def test_seeds_share_the_wall_time_of_an_accelerator(self, tmp_path):
        environment = {"device": "NVIDIA H200"}
        run = store_run(tmp_path / "er", environment=environment)  # three seeds, 30 s
        files, shown = make(tmp_path, run)
        assert "| 10 s on NVIDIA H200 |" in files.table_md.read_text()
        assert "3 10.0" in " ".join(shown.split())
        (row,) = table_rows(files)
        assert (row["train_s_per_seed"], row["device"]) == ("10.0", "NVIDIA H200")

    def test_rows_are_sorted_by_retained_accuracy(self, tmp_path):
        _, initial = example()
        folders = [
            store_run(tmp_path / name, name, example(retained)[0], initial)
            for name, retained in (("er", 0.5), ("lamaml", 0.7), ("new", 0.6))
        ]
        files, _ = make(tmp_path, *folders)
        assert [r["label"] for r in table_rows(files)] == ["La-MAML", "new", "ER"]

    def test_every_benchmark_is_in_the_one_table(self, tmp_path):
        store_run(tmp_path / "runs" / "a")
        store_run(tmp_path / "runs" / "b", benchmark="mnist-rotations")
        files, _ = make(tmp_path, tmp_path / "runs")
        names = [row["benchmark"] for row in table_rows(files)]
        assert names == ["mnist-rotations", "digits-rotations"]

    def test_streams_of_different_length_are_different_benchmarks(self, tmp_path):
        long = np.full((1, 3, 3), 0.5, np.float32)
        files, _ = make(
            tmp_path,
            store_run(tmp_path / "a"),
            store_run(tmp_path / "b", "er", long, long[:, 0]),
        )
        names = [row["benchmark"] for row in table_rows(files)]
        assert names == ["digits-rotations-2-tasks", "digits-rotations-3-tasks"]

    def test_an_unfinished_run_is_named_and_skipped(self, tmp_path):
        store_run(tmp_path / "runs" / "er")
        broken = store_run(tmp_path / "runs" / "lamaml", "lamaml")
        (broken / "summary.json").unlink()
        files, shown = make(tmp_path, tmp_path / "runs")
        assert len(table_rows(files)) == 1
        for text in (shown, files.table_md.read_text(), *files.skipped):
            assert f"{broken}: incomplete" in text.replace("\n", " ")

    def test_a_run_that_diverged_on_every_seed_is_named(self, tmp_path):
        lost = store_run(tmp_path / "lamaml", "lamaml", lost=[0, 1, 2])
        files, shown = make(tmp_path, store_run(tmp_path / "er"), lost)
        assert "every one diverged" in files.table_md.read_text()
        assert "every one diverged" in shown

    def test_no_run_with_a_result_is_an_error(self, tmp_path):
        lost = store_run(tmp_path / "er", lost=[0, 1, 2])
        with pytest.raises(run_folder.RunFolderError, match="no run to report on"):
            make(tmp_path, lost)

    def test_damaged_runs_and_other_versions_are_named_and_skipped(self, tmp_path):
        broken = store_run(tmp_path / "er")
        (broken / "arrays.npz").write_bytes(b"PK")
        other = store_run(tmp_path / "new", "new", format_version=99)
        sound = store_run(tmp_path / "lamaml", "lamaml")
        files, shown = make(tmp_path, sound, broken, other)
        assert [row["label"] for row in table_rows(files)] == ["La-MAML"]
        for text in (shown, files.table_md.read_text(), files.page.read_text()):
            text = " ".join(text.split())
            assert "arrays.npz is damaged" in text
            assert "has format_version 99" in text

    def test_only_damaged_runs_are_an_error(self, tmp_path):
        broken = store_run(tmp_path / "er")
        (broken / "arrays.npz").write_bytes(b"PK")
        with pytest.raises(run_folder.RunFolderError, match=r"arrays\.npz is damaged"):
            make(tmp_path, broken)

    def test_passes_and_settings_are_never_mixed(self, tmp_path):
        folders = [
            store_run(tmp_path / str(i), **config)
            for i, config in enumerate(
                [
                    {},
                    {"passes": "single", "setting": "aware", "epochs": 1},
                    {"passes": "multi", "epochs": 10},
                    {"setting": "agnostic"},
                ]
            )
        ]
        files, _ = make(tmp_path, *folders)
        assert [(row["benchmark"], row["label"]) for row in table_rows(files)] == [
            ("digits-rotations", "ER (0)"),  # the same settings, one not written down
            ("digits-rotations", "ER (1)"),
            ("digits-rotations-agnostic", "ER"),
            ("digits-rotations-multi", "ER"),
        ]

    def test_of_mixed_tasks_only_retained_accuracy_is_shown(self, tmp_path):
        files, _ = make(tmp_path, store_run(tmp_path / "iid", "iid"))
        (row,) = table_rows(files)
        assert float(row["ra_mean"]) == pytest.approx(65, abs=1e-4)
        assert (row["bti_mean"], row["la_mean"], row["fwt_mean"]) == ("", "", "")
        assert "| 65.0 ± 5.0 | n/a | n/a | n/a |" in files.table_md.read_text()
        assert "| IID | 65.0 ± 5.0 | - |" in files.comparison_md.read_text()

    def test_an_output_that_cannot_be_made_is_an_error(self, tmp_path):
        (tmp_path / "out").write_text("in the way")
        with pytest.raises(run_folder.RunFolderError, match="cannot be written"):
            make(tmp_path, store_run(tmp_path / "er"))

    def test_a_narrow_terminal_still_names_the_method(self, tmp_path):
        console = Console(file=io.StringIO(), width=50)
        folder = store_run(tmp_path / "metabgd", "metabgd")
        report.make_report([folder], tmp_path / "out", console=console)
        assert "Meta-BGD" in console.file.getvalue()
        assert "…" not in console.file.getvalue()

    def test_no_number_is_cut_at_80_columns(self, tmp_path):
        same = {
            "benchmark": "mnist-rotations",
            "rows_per_task": 1000,
            "capacity": 200,
            "replay_size": 10,
            "first_order": True,
        }
        accuracy = np.full((2, 20, 20), 0.5, np.float32)
        accuracy[:, -1] = [[0.1], [0.5]]
        folders = [
            store_run(tmp_path / name, name, accuracy, accuracy[:, 0], lr=rate, **same)
            for name, rate in (("lamaml", 0.1), ("metabgd", 0.1))
        ]
        _, shown = make(tmp_path, *folders)
        assert "…" not in shown
        assert "La-MAML " in shown
        assert "30.0 ± 28.3 -19.0 ± 26.9" in " ".join(shown.split())
        table = shown[: shown.index("tables and figures")]
        assert max(map(len, table.splitlines())) <= 80
        assert "77.1 / -8.8" in shown
        assert "BTI: its change since each task was" in table


@pytest.mark.usefixtures("no_figures")
class TestComparison:
    def runs(self, tmp_path):
        accuracy = np.full((2, 20, 20), 0.5, np.float32)
        accuracy[:, -1] = 0.4
        config = {
            k: v for k, v in ROTATIONS.items() if k not in ("method", "num_tasks")
        }
        # The authors' figure of ER is one of this learning rate.
        other = config | {"benchmark": "mnist-permutations", "learning_rate": 0.1}
        start = accuracy[:, 0]
        return [
            store_run(tmp_path / "a", "lamaml", accuracy, start, **config),
            store_run(tmp_path / "b", "new", accuracy, start, **other),
            store_run(tmp_path / "c", "er", accuracy[:1], start[:1], **other),
            store_run(tmp_path / "d", "er"),
        ]

    def test_methods_are_rows_and_benchmarks_sets_of_columns(self, tmp_path):
        files, _ = make(tmp_path, *self.runs(tmp_path))
        text = files.comparison_md.read_text()
        mnist, digits = (
            text.index("## MNIST, 2 seeds\n"),
            text.index("## Digits, 3 seeds\n"),
        )
        lines = text[mnist:digits].splitlines()
        names = ("MNIST Rotations", "MNIST Permutations")
        heads = [f"{name} RA % | {name} BTI" for name in names]
        assert lines[2] == f"| method | {' | '.join(heads)} |"
        # RA 40; BTI: 19 of 20 tasks lose 10 points. One seed has no sd.
        assert lines[4:7] == [
            "| La-MAML | 40.0 ± 0.0 [77.1, 77.4] | -9.5 ± 0.0 [-8.8] |  |  |",
            "| ER |  |  | 40.0 (1) [66.8] | -9.5 (1) [-17.0] |",
            "| new |  |  | 40.0 ± 0.0 | -9.5 ± 0.0 |",
        ]
        costs = text[text.index("## What it cost: MNIST\n") : digits].splitlines()
        assert costs[4] == "| La-MAML | 12 s |  |"

    def test_csv_has_a_line_per_method_and_benchmark(self, tmp_path):
        files, _ = make(tmp_path, *self.runs(tmp_path))
        lines = list(csv.DictReader(io.StringIO(files.comparison_csv.read_text())))
        assert len(lines) == 4
        by_key = {(line["benchmark"], line["method"]): line for line in lines}
        lamaml = by_key["mnist-rotations", "La-MAML"]
        assert lamaml["others_source"] == "authors' code; paper"
        assert lamaml["others_ra"].endswith("; 77.42")
        assert by_key["digits-rotations", "ER"]["table"] == "Digits"

    def test_page_is_whole_in_itself_and_escapes_what_runs_say(self, tmp_path):
        runs = self.runs(tmp_path)
        odd = [
            store_run(tmp_path / name / "er<b>&", "er", glances=glances)
            for name, glances in (("x", 1), ("y", 1))
        ]
        files, _ = make(tmp_path, *runs, *odd)
        text = files.page.read_text()
        assert "er<b>" not in text and "er&lt;b&gt;&amp;" in text
        for word in ("http:", "https:", "<link", 'src="/', "<script src"):
            assert word not in text
        assert "77.1 (code, n = 3), 77.42 (paper)" in text


class TestVariants:
    def labels(self, tmp_path, *configs):
        folders = [
            store_run(tmp_path / f"run{i}", **config)
            for i, config in enumerate(configs)
        ]
        return variant_labels([run_folder.read(f) for f in folders])

    def test_a_method_run_once_needs_no_label(self, tmp_path):
        assert self.labels(tmp_path, {"capacity": 1}) == [""]

    def test_the_settings_that_differ_are_named(self, tmp_path):
        labels = self.labels(
            tmp_path,
            {"capacity": 100, "clip": 2},
            {"capacity": 200, "clip": 2, "acceptance": "published"},
        )
        assert labels == [
            "capacity 100, no acceptance",
            "capacity 200, acceptance published",
        ]

    def test_a_bound_that_no_gradient_reaches_is_called_no_clipping(self, tmp_path):
        labels = self.labels(tmp_path, {"max_grad_norm": 1e6}, {"max_grad_norm": 2.0})
        assert labels == ["no clipping", "max grad norm 2.0"]

    def test_orders_are_called_as_people_call_them(self, tmp_path):
        labels = self.labels(tmp_path, {"first_order": True}, {"first_order": False})
        assert labels == ["first order", "second order"]

    def test_a_bound_that_is_no_number_is_shown_as_it_is(self, tmp_path):
        labels = self.labels(tmp_path, {"max_grad_norm": None}, {"max_grad_norm": 2.0})
        assert labels == ["max grad norm null", "max grad norm 2.0"]

    def test_how_often_a_run_was_evaluated_is_no_setting(self, tmp_path):
        often, once = {"glances": 1, "eval_every": 1}, {"glances": 5, "eval_every": 20}
        assert self.labels(tmp_path, often, once) == ["glances 1", "glances 5"]

    def test_equal_settings_are_told_apart_by_seeds_then_folder(self, tmp_path):
        labels = self.labels(tmp_path, {}, {"seeds": [5, 6, 7]}, {"seeds": [4, 7, 9]})
        assert labels == ["seeds 0-2", "seeds 5-7", "seeds 4 7 9"]
        other = tmp_path / "other"
        other.mkdir()
        assert self.labels(other, {}, {}) == ["run0", "run1"]

    def test_folders_of_one_name_are_told_apart_by_path(self, tmp_path):
        folders = [store_run(tmp_path / name / "er") for name in "ab"]
        runs = [run_folder.read(folder) for folder in folders]
        assert variant_labels(runs) == [str(folder) for folder in folders]

    @pytest.mark.usefixtures("no_figures")
    def test_the_label_is_in_the_table(self, tmp_path):
        folders = [store_run(tmp_path / str(c), capacity=c) for c in (50, 100)]
        files, _ = make(tmp_path, *folders)
        labels = [row["label"] for row in table_rows(files)]
        assert labels == ["ER (capacity 50)", "ER (capacity 100)"]


ROTATIONS = {
    "benchmark": "mnist-rotations",
    "method": "lamaml",
    "num_tasks": 20,
    "rows_per_task": 1000,
    "glances": 5,
    "capacity": 200,
    "replay_size": 10,
    "first_order": True,
}


TINY = {
    "benchmark": "tinyimagenet-split",
    "method": "lamaml",
    "passes": "single",
    "setting": "aware",
    "num_tasks": 40,
    "rows_per_task": 2250,
    "classes_per_task": 5,
    "glances": 2,
    "capacity": 400,
    "replay_size": 10,
    "first_order": False,
    "step_size_init": 0.1,
}


class TestPublished:
    @pytest.mark.parametrize(
        "row", published.PUBLISHED, ids=lambda row: f"{row.benchmark}, {row.method}"
    )
    def test_a_figure_stands_beside_the_preset_and_no_variant_of_it(self, row):
        benchmark, passes = (
            benchmarks.get_benchmark(row.benchmark),
            row.settings.get("passes", "single"),
        )
        (hyper,) = presets.resolve(benchmark.name, [row.method], {}, passes=passes)
        setting = row.settings.get("setting", "agnostic")
        config = config_record(
            RunConfig(
                benchmark, row.method, (0,), hyper, setting=setting, passes=passes
            )
        )
        assert row in published.look_up(config)
        changes = [{"glances": 7}]
        if config.get("first_order") is not None:
            changes += [{"first_order": not config["first_order"]}]
        if config.get("replay_size") is not None:
            changes += [{"replay_size": 7}, {"capacity": 77}]
        if row.method == "cmaml":
            changes += [{"step_size_init": 0.0}]
        for change in changes:
            assert published.look_up(config | change) == ()

    def test_means_are_over_the_listed_seeds(self):
        code, paper = published.look_up(ROTATIONS)
        assert code.ra == pytest.approx((77.5 + 76.8 + 77.0) / 3)
        assert code.bti == pytest.approx(-8.8)
        assert (paper.source, paper.ra) == (published.PAPER, 77.42)
        assert np.isnan(paper.bti)

    @pytest.mark.parametrize(
        "change", [{"num_tasks": 3}, {"glances": 1}, {"capacity": 50}, {"method": "x"}]
    )
    def test_a_run_of_other_settings_has_nothing_beside_it(self, change):
        assert published.look_up(ROTATIONS | change) == ()

    def test_the_preset_of_er_online_stands_beside_the_surveys_runs(self):
        benchmark = benchmarks.get_benchmark("cifar100-online")
        (hyper,) = presets.resolve(benchmark.name, ["er"], {})
        config = config_record(RunConfig(benchmark, "er", (0,), hyper))
        (found,) = published.look_up(config)
        assert found.ra == pytest.approx(28.15)
        for change in (
            {"capacity": 1000},
            {"max_grad_norm": 2.0},
            {"network": "reduced-resnet18"},
        ):
            assert published.look_up(config | change) == ()

    def test_image_figures_are_told_apart_by_passes(self):
        mer = {"method": "mer", "glances": 1, "replay_size": 25}
        assert published.look_up(TINY | mer | {"passes": "multi"}) == ()
        (row,) = published.look_up(TINY | mer)
        assert row.ra == 44.87

    @pytest.mark.parametrize(
        "change",
        [
            {"num_tasks": 10},
            {"num_tasks": 20},
            {"rows_per_task": 100},
            {"setting": "agnostic"},
            {"benchmark": "cifar100-split"},
        ],
    )
    def test_image_figures_are_of_the_whole_benchmark(self, change):
        assert published.look_up(TINY | change) == ()

    def test_cifar_has_twenty_tasks(self):
        own = {"num_tasks": 20, "glances": 10, "capacity": 200}
        (row,) = published.look_up(TINY | {"benchmark": "cifar100-split"} | own)
        assert row.ra == 61.18

    def test_learning_accuracy_less_interference_is_retained_accuracy(self):
        # RA = LA + BTI by definition; the figures are rounded to 0.1 per seed.
        rows = [row for row in published.PUBLISHED if row.learning_accuracy]
        assert len(rows) == 14
        for row in rows:
            sums = np.add(row.learning_accuracy, row.backward_transfer_interference)
            np.testing.assert_allclose(sums, row.retained_accuracy, atol=0.16)

    @pytest.mark.usefixtures("no_figures")
    def test_they_stand_in_the_table_with_their_source(self, tmp_path):
        accuracy = np.full((2, 20, 20), 0.5, np.float32)
        config = {
            k: v for k, v in ROTATIONS.items() if k not in ("method", "num_tasks")
        }
        folder = store_run(tmp_path / "a", "lamaml", accuracy, accuracy[:, 0], **config)
        files, _ = make(tmp_path, folder)
        text = files.table_md.read_text()
        assert "| 77.1 (code, n = 3), 77.42 (paper) | -8.8 (code, n = 3) |" in text


class TestFigures:
    def test_each_is_a_png_of_the_stated_size_and_what_else_was_asked(self, tmp_path):
        _, initial = example()
        folders = [
            store_run(tmp_path / "er"),
            store_run(tmp_path / "new", "new", example(0.5)[0], initial, lost=[2]),
        ]
        files, _ = make(tmp_path, *folders, formats=("svg", "pdf"))
        names = sorted(path.name for path in files.figures)
        assert names == sorted(
            f"digits-rotations_{kind}.{suffix}"
            for kind in ("bars", "curves", "tasks")
            for suffix in ("png", "svg", "pdf")
        )
        for path in files.figures:
            data = path.read_bytes()
            if path.suffix == ".svg":
                assert xml.etree.ElementTree.fromstring(data).tag.endswith("svg")
                continue
            if path.suffix == ".pdf":
                assert data[:5] == b"%PDF-"
                continue
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            width, height = struct.unpack(">II", data[16:24])
            assert width == int(figures.DPI * figures.WIDTH_IN)
            assert 200 < height < 600
        assert files.page.read_text().count("data:image/webp;base64,") == 3

    def test_the_page_shows_the_pixels_of_the_files(self, tmp_path):
        files, _ = make(tmp_path, store_run(tmp_path / "er"))
        shown = re.findall('data:image/webp;base64,([^"]+)', files.page.read_text())
        page = [Image.open(io.BytesIO(base64.b64decode(data))) for data in shown]
        pixels = {image.convert("RGB").tobytes() for image in page}
        assert len(pixels) == len(files.figures)
        assert pixels == {
            Image.open(path).convert("RGB").tobytes() for path in files.figures
        }

    def test_png_is_what_is_written_unasked(self, tmp_path):
        files, _ = make(tmp_path, store_run(tmp_path / "er"))
        assert {path.suffix for path in files.figures} == {".png"}

    def test_an_unknown_format_is_told(self, tmp_path):
        with pytest.raises(
            UserError, match="unknown format 'eps'; choose of: svg, pdf"
        ):
            make(tmp_path, store_run(tmp_path / "er"), formats=("eps",))

    def sparse(self):
        """Four tasks; all are evaluated after the second and the fourth only."""
        accuracy = np.full((2, 4, 4), NAN, np.float32)
        accuracy[:, [0, 0, 2, 2], [0, 1, 2, 3]] = 0.9
        accuracy[:, [1, 3]] = 0.5
        return accuracy

    def test_curves_have_points_only_where_all_tasks_so_far_were_evaluated(self):
        assert figures.evaluated(self.sparse()).tolist() == [0, 1, 3]
        (axes,) = figures.curves("x", [entry_of(self.sparse())]).axes
        (line,) = axes.lines
        assert line.get_xdata().tolist() == [1, 2, 4]
        np.testing.assert_allclose(line.get_ydata(), [90, 50, 50], rtol=1e-6)

    def test_a_matrix_alone_is_in_the_middle_of_its_page(self):
        page = figures.matrices("x", [entry_of(np.full((1, 4, 4), 0.5, np.float32))])
        page.draw_without_rendering()
        box = page.axes[0].get_position()
        assert abs((box.x0 + box.x1) / 2 - 0.5) < 0.1

    def test_the_line_to_a_crowded_label_crosses_no_other(self):
        axes = matplotlib.figure.Figure().subplots()
        axes.set_ylim(0, 100)
        labels = [common.Label(f"method {n}", 90 + n / 10, "black") for n in range(9)]
        common.label_ends(axes, labels, 2)
        axes.figure.draw_without_rendering()
        left = min(Text.get_window_extent(text).x0 for text in axes.texts)
        for text in axes.texts:
            assert text.arrow_patch.get_window_extent().x1 < left + 1

    def test_a_run_tested_at_its_ends_only_has_no_curve_and_no_matrix(self):
        accuracy = self.sparse()
        accuracy[:, 1] = NAN
        for draw in (figures.curves, figures.matrices):
            assert draw("x", [entry_of(accuracy)]) is None
            assert draw("x", [entry_of(accuracy[:, -1:, -1:])]) is not None

    def test_families_are_panels_with_all_others_in_grey(self):
        accuracy = np.full((2, 3, 3), 0.5)
        names = ("lamaml", "cmaml", "mer", "er", "derpp", "gem", "online", "iid")
        page = figures.curves("x", [entry_of(accuracy, name) for name in names])
        panels = {axes.get_title(): axes for axes in page.axes}
        assert list(panels) == [
            *(styles.LOOK_AHEAD, styles.META, styles.REPLAY, styles.CONSTRAINTS)
        ]
        replay = panels[styles.REPLAY]
        assert {text.get_text() for text in replay.texts} == {
            *("ER", "DER++", "Online", "IID, at the end")
        }
        colors = [line.get_color() for line in replay.lines]
        assert colors.count(common.FAINT) == 4

    def test_few_methods_share_one_panel(self):
        entries = [
            entry_of(np.full((2, 3, 3), 0.5), name) for name in ("lamaml", "er", "iid")
        ]
        assert len(figures.curves("x", entries).axes) == 1

    def test_names_beside_points_do_not_cover_each_other(self):
        from matplotlib.text import Text

        rng = np.random.default_rng(3)
        entries = []
        for name in list(styles.NAMES)[:15]:
            accuracy = np.full((3, 2, 2), 0.7) + 0.03 * rng.standard_normal((3, 1, 1))
            cost = cost_of(float(rng.choice([50, 52, 100, 105])), 0)
            entries.append(entry_of(accuracy, name, cost=cost))
        page = figures.compute("x", entries)
        page.draw_without_rendering()
        # Of the words alone, without the lines that lead to them.
        boxes = [Text.get_window_extent(text) for text in page.axes[0].texts]
        assert len(boxes) == 15
        for first, second in itertools.combinations(boxes, 2):
            assert not first.overlaps(second)

    def test_matrices_show_evaluated_rows_and_learnt_tasks_only(self):
        figure = figures.matrices("x", [entry_of(self.sparse())])
        shown = figure.axes[0].collections[0].get_array()
        assert shown.shape == (3, 4)
        rows = [row.compressed().round(2).tolist() for row in shown]
        assert rows == [[90], [50] * 2, [50] * 4]

    def test_bars_end_at_the_mean_and_show_each_seed_and_the_authors(self):
        accuracy = np.stack([np.full((2, 2), 0.6), np.full((2, 2), 0.8)])
        entry = entry_of(accuracy)._replace(published=published.look_up(ROTATIONS))
        left, right = figures.bars("x", [entry]).axes
        assert left.patches[0].get_width() == pytest.approx(70)
        assert right.patches[0].get_width() == pytest.approx(-10)
        seeds = left.collections[-2].get_offsets()[:, 0]
        np.testing.assert_allclose(seeds, [60, 80])
        drawn = {line.get_label(): line.get_xdata()[0] for line in left.lines}
        assert drawn[published.PAPER] == 77.42

    def test_bars_leave_out_what_means_nothing(self):
        entry = entry_of(np.full((2, 2, 2), 0.5))
        nothing = {"backward_transfer_interference": np.full(2, NAN)}
        entry = entry._replace(percent=dict(entry.percent) | nothing)
        left, right = figures.bars("x", [entry]).axes
        assert len(left.patches) == 1 and len(right.patches) == 0

    def test_compute_shows_accuracy_against_gradients(self):
        cheap, dear = (
            entry_of(np.stack([np.full((2, 2), a), np.full((2, 2), a + 0.2)]))
            for a in (0.5, 0.6)
        )
        unknown = cheap
        cheap = cheap._replace(cost=cost_of(10.0, 0))
        dear = dear._replace(cost=cost_of(105.0, 0), variant=1)
        (axes,) = figures.compute("x", [cheap, dear, unknown]).axes
        points = [tuple(bar[0].get_xydata()[0]) for bar in axes.containers]
        np.testing.assert_allclose(points, [(10, 60), (105, 70)])
        assert axes.get_xscale() == "log"

    def test_compute_needs_runs_of_different_cost(self):
        entry = entry_of(np.full((2, 2, 2), 0.5), cost=cost_of(5.0, 0))
        assert figures.compute("x", [entry, entry]) is None

    def measured(self, method="lamaml", num_seeds=2):
        """Three tasks; probes at two points of each of the first two."""
        ramp = np.arange(num_seeds)[:, None] / 10
        quantiles = np.zeros((num_seeds, 4, 2, 5))
        quantiles[:, 1:] = np.linspace(-0.1, 0.3, 5)
        cosines = np.full((num_seeds, 3, 3, 3), NAN)
        cosines[:, 0, 0, 0] = 1
        cosines[:, 1, :2, :2] = [[1, -0.5], [-0.5, 1]]
        cosines[:, 2] = [[1, 0.1, 0.2], [0.1, 1, 0.6], [0.2, 0.6, 1]]
        return entry_of(
            np.full((num_seeds, 3, 3), 0.5),
            method,
            ("Dense_0/bias", "Dense_0/kernel"),
            probe_updates=np.array([10, 20, 30, 40]),
            probe_tasks=np.array([0, 0, 1, 1]),
            probe_slow=np.add(ramp, [[0.2, 0.4, 0.5, 0.6]]),
            probe_fast=np.add(ramp, [[0.1, 0.2, 0.3, 0.4]]),
            step_size_quantiles=quantiles,
            task_alignment=cosines,
            alignment_after=np.array([1, 2, 3]),
        )

    @pytest.mark.parametrize("num_seeds", [1, 2])
    def test_probes_show_slow_and_fast_weights_and_where_tasks_end(self, num_seeds):
        entry = self.measured(num_seeds=num_seeds)
        axes = figures.probes("x", [entry, entry_of(entry.accuracy)]).axes
        assert len(axes) == 1  # a run without probes has no panel
        end, slow, fast = axes[0].lines
        assert end.get_xdata() == [20, 20]
        shift = 5 * (num_seeds - 1)
        np.testing.assert_allclose(slow.get_ydata(), np.add([20, 40, 50, 60], shift))
        np.testing.assert_allclose(fast.get_ydata(), np.add([10, 20, 30, 40], shift))

    def test_step_sizes_show_the_median_of_each_leaf_weights_first(self):
        axes = figures.step_sizes("x", [self.measured()]).axes
        titles = [" ".join(each.get_title().split()) for each in axes]
        assert titles == ["first layer, weights", "first layer, biases"]
        np.testing.assert_allclose(axes[0].lines[1].get_ydata(), [0, 0.1, 0.1, 0.1])

    def test_step_sizes_stand_from_the_first_layer_to_the_last(self):
        blocks = [f"_Block_{n}/Conv_0/kernel" for n in range(9)]
        leaves = ["Conv_0/bias", "Conv_0/kernel", "Dense_0/kernel", *blocks]
        shown = [leaves[n] for n in training.shown_leaves(leaves)]
        assert shown[:2] == ["Conv_0/kernel", "_Block_0/Conv_0/kernel"]
        assert shown[-2:] == ["_Block_8/Conv_0/kernel", "Dense_0/kernel"]

    def test_frozen_step_sizes_are_not_drawn(self):
        entry = self.measured("cmaml")
        same = np.full((2, 4, 2, 5), 0.1)
        run = entry.run._replace(arrays={"step_size_quantiles": same})
        frozen = entry._replace(run=run)
        assert figures.step_sizes("x", [frozen]) is None

    def test_alignment_is_the_mean_cosine_of_pairs_and_of_the_newest(self):
        pairs, newest = figures.alignment("x", [self.measured()]).axes
        np.testing.assert_allclose(pairs.lines[0].get_xdata(), [2, 3])
        np.testing.assert_allclose(pairs.lines[0].get_ydata(), [-0.5, 0.3])
        np.testing.assert_allclose(newest.lines[0].get_ydata(), [-0.5, 0.4])

    def test_what_was_not_measured_is_not_drawn(self):
        entries = [entry_of(np.full((2, 3, 3), 0.5))]
        for draw in (figures.probes, figures.step_sizes, figures.alignment):
            assert draw("x", entries) is None

    def test_measures_of_a_diverged_seed_are_left_out(self, tmp_path):
        folder = store_run(tmp_path / "er", lost=[1])
        run = run_folder.read(folder)
        # as many probes as seeds, to tell the axes apart
        extra = {
            "probe_updates": np.arange(3),
            "probe_slow": np.arange(9.0).reshape(3, 3),
        }
        (entry,) = make_entries([run._replace(arrays=run.arrays | extra)])
        assert entry.measure("probe_updates").tolist() == [0, 1, 2]
        assert entry.measure("probe_slow")[:, 0].tolist() == [0, 6]

    # A band that ends above 100 %, and a mean within a point of it.
    @pytest.mark.parametrize("best", [(0.98, 1.0), (0.995, 0.995)])
    def test_bands_lie_within_the_axes_and_these_end_at_100_percent(self, best):
        seeds = np.array([[0.30], [0.80]]), np.array(best)[:, None]
        near, far = (
            entry_of(np.broadcast_to(each[..., None], (2, 3, 3)), name)
            for each, name in zip(seeds, ("er", "lamaml"), strict=True)
        )
        low, high = figures.curves("x", [near, far]).axes[0].get_ylim()
        # The other mean is 55 %, its deviation 35.4.
        assert 0 <= low <= 55 - 35.4 and high == 100

    @pytest.mark.parametrize("num_runs", [2, 9, 16])
    def test_any_number_of_runs_can_be_drawn(self, num_runs):
        accuracy = np.full((2, 3, 3), 0.5, np.float32)
        names = list(styles.NAMES)[:num_runs]
        entries = [entry_of(accuracy, name) for name in names]
        for draw in (figures.bars, figures.curves, figures.matrices):
            draw("x", entries).draw_without_rendering()

    @pytest.mark.parametrize("num_tasks", [1, 100])
    def test_streams_of_any_length_can_be_drawn(self, num_tasks):
        accuracy = np.full((1, num_tasks, num_tasks), 0.5, np.float32)
        for draw in (figures.bars, figures.curves, figures.matrices):
            figure = draw("x", [entry_of(accuracy)])
            figure.draw_without_rendering()
            ticks = figure.axes[0].get_xticks()
            assert draw is figures.bars or {1, num_tasks} <= set(ticks)

    def test_a_written_picture_has_the_colours_that_were_drawn(self, tmp_path):
        from matplotlib import cm, rc_context
        from matplotlib.figure import Figure

        def draw():
            figure = Figure(figsize=(4, 3))
            axes = figure.subplots()
            axes.imshow(cm.viridis(np.linspace(0, 1, 256))[None], aspect="auto")
            axes.plot([0, 255], [0.3, -0.3], color="#D55E00")
            return figure

        buffer = io.BytesIO()
        with rc_context(figures.RC):
            draw().savefig(buffer, format="png")
        (file,) = figures.save(draw, tmp_path / "x")
        wanted, found = (
            np.asarray(Image.open(data).convert("RGB"), int) for data in (buffer, file)
        )
        # Of 256 steps; colours chosen by how often they occur are off by 79.
        assert abs(wanted - found).max() <= 20

    def test_the_same_runs_give_the_same_bytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(figures, "KINDS", {"curves": figures.curves})
        entry = entry_of(np.full((2, 3, 3), 0.5, np.float32))
        files = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            files.append(figures.write(tmp_path / name, "x", [entry]))
        for first, second in zip(*files, strict=True):
            assert first.read_bytes() == second.read_bytes()


class TestStyles:
    def test_a_colour_is_one_methods_alone(self):
        assert styles.STYLES.keys() == styles.NAMES.keys()
        colors = [style.color for style in styles.STYLES.values()]
        assert len(set(colors)) == len(colors)

    def test_every_method_has_one_family(self):
        members = [method for part in styles.FAMILIES.values() for method in part]
        assert sorted(members) == sorted(styles.NAMES)
        assert styles.family("of a user") == styles.OWN

    @pytest.mark.parametrize("vision", ["usual", "deuteranopia", "protanopia"])
    def test_colours_of_a_family_are_told_apart(self, vision):
        """By at least 15 in CIELAB; 2.3 is just noticeable side by side."""
        for part in styles.FAMILIES.values():
            for first, second in itertools.combinations(part, 2):
                pair = [styles.STYLES[name].color for name in (first, second)]
                distance = np.linalg.norm(np.subtract(*(lab(c, vision) for c in pair)))
                assert distance > 15, (first, second)


# Machado, Oliveira and Fernandes 2009, severity 1, of linear RGB.
VISION = {
    "usual": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def lab(color, vision):
    """CIELAB of a colour as seen, under D65."""
    rgb = np.array([int(color[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(VISION[vision] @ linear, 0, 1)
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    xyz = to_xyz @ seen / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


class TestWording:
    @pytest.mark.parametrize(
        ("benchmark", "title", "section"),
        [
            ("mnist-rotations", "MNIST Rotations", "MNIST"),
            ("fashion-mnist-many", "Fashion-MNIST Many Permutations", "Fashion-MNIST"),
            ("cifar100-split", "Split CIFAR-100", "CIFAR-100"),
            (
                "tinyimagenet-split-multi-10-tasks",
                "Split Tiny ImageNet (several passes, 10 tasks)",
                "Tiny ImageNet",
            ),
            ("mnist-online", "Online MNIST", "Online MNIST"),
            ("clusters", "clusters", "Other benchmarks"),
            ("mnist-of-mine", "mnist-of-mine", "Other benchmarks"),
        ],
    )
    def test_benchmarks_have_names_in_words(self, benchmark, title, section):
        assert wording.benchmark_title(benchmark) == title
        assert wording.section_title(benchmark) == section

    def test_layers_have_names_in_words(self):
        leaves = ["Conv_0/kernel", "Dense_0/bias", "Dense_1/kernel", "all weights"]
        assert wording.leaf_titles(leaves) == [
            "first convolution, weights",
            "first dense layer, biases",
            "last dense layer, weights",
            "all weights",
        ]

    def test_layers_within_blocks_have_names_in_words(self):
        leaves = ["_Block_0/Conv_1/kernel", "Stage_1/_Block_9/BatchNorm_0/scale"]
        assert wording.leaf_titles(leaves) == [
            "block 1, convolution 2, weights",
            "stage 2, block 10, batchnorm 1, scale",
        ]
        assert wording.leaf_titles(["encoder/w", "a_0/b/c"]) == ["encoder/w", "a_0/b/c"]

    def test_every_figure_has_a_caption_of_sentences(self):
        entries = [entry_of(np.full((2, 3, 3), 0.5))]
        for kind in figures.KINDS:
            text = captions.caption(kind, "mnist-rotations", entries)
            assert text.startswith("MNIST Rotations. ") and text.endswith(".")
            assert "2 seeds" in text and "{" not in text


class TestPage:
    def page(self, tmp_path, *folders, **options):
        files, _ = make(tmp_path, *folders, **options)
        return files.page.read_text()

    def test_the_table_of_a_benchmark_follows_its_bars(self, tmp_path):
        text = self.page(tmp_path, store_run(tmp_path / "digits"))
        section = text[text.index("<h3") :]
        bars, table, curves = (
            section.index(word)
            for word in ("Retained accuracy (RA) over", "<table>", "along the stream")
        )
        assert bars < table < curves

    @pytest.mark.usefixtures("no_figures")
    def test_the_contents_name_what_is_there(self, tmp_path):
        folders = [
            store_run(tmp_path / "digits"),
            store_run(tmp_path / "tiny", benchmark="tinyimagenet-split"),
        ]
        text = self.page(tmp_path, *folders)
        contents = text[text.index("<nav") : text.index("</nav>")]
        links = re.findall(r"<a href='#([\w-]+)'>([^<]+)</a>", contents)
        assert [title for _, title in links] == [
            "Overview",
            *("Tiny ImageNet", "Split Tiny ImageNet"),
            *("Digits", "Digits Rotations"),
            "Runs",
        ]
        assert "CIFAR" not in text
        for anchor, _ in links:
            assert text.count(f"id='{anchor}'") == 1

    @pytest.mark.usefixtures("no_figures")
    def test_every_run_says_how_it_was_made(self, tmp_path):
        environment = {
            "command": "python -m experiments run -m er",
            "git_commit": "0123456789abcdef",
            "started": "2026-11-23T13:47:24+00:00",
            "device": "cpu",
            "cpu_count": 2,
            "processor": "x86_64",
            "versions": {"jax": "0.10.2", "python": "3.11.7"},
        }
        folder = store_run(tmp_path / "er", environment=environment, learning_rate=0.3)
        text = self.page(tmp_path, folder)
        for word in (
            "1 run of 1 method on 1 benchmark, made on 23 November 2026 on x86_64 "
            "processor with 2 cores, at 1 commit.",
            "ER, 23 November 2026, commit 0123456, x86_64 processor with 2 cores",
            "<dt>command</dt><dd>python -m experiments run -m er</dd>",
            "<dt>commit</dt><dd>0123456789abcdef</dd>",
            "<dt>versions</dt><dd>jax 0.10.2, python 3.11.7</dd>",
            "glances 5, ",
            ", learning rate 0.3",
        ):
            assert word in text

    @pytest.mark.parametrize(
        ("usable", "words"), [(None, ""), (4, ""), (1, ", 1 usable")]
    )
    def test_cores_that_a_run_could_not_use_are_told(self, usable, words):
        cpu = {"device": "cpu", "cpu_count": 4, "processor": "arm64"}
        told = provenance.device_text(cpu | {"usable_cpu_count": usable})
        assert told == f"arm64 processor with 4 cores{words}"

    @pytest.mark.usefixtures("no_figures")
    def test_the_next_command_is_at_the_end(self, tmp_path):
        folder = store_run(tmp_path / "er")
        _, shown = make(tmp_path, folder)
        *_, before, last = shown.splitlines()
        page = "all on one page in report.html"
        assert before == f"tables and figures are in {tmp_path / 'out'}, {page}"
        assert last.endswith(
            f"report {folder} --out {tmp_path / 'out'} --format svg,pdf"
        )


RESULTS = pathlib.Path(__file__).parents[2] / "experiments/results"


@pytest.mark.parametrize("page", sorted(RESULTS.glob("**/report/report.html")))
def test_committed_pages_are_small_enough_to_send(page):
    assert page.stat().st_size < 2_000_000


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_importing_the_report_imports_neither_jax_nor_matplotlib():
    code = (
        "import sys, experiments.report; print({'jax', 'matplotlib'} & {*sys.modules})"
    )
    assert python(code) == "set()"


def test_making_a_report_does_not_import_jax(tmp_path):
    folder = store_run(tmp_path / "er", cost=cost_of(10.0, 1000))
    code = (
        "import sys; from experiments import report;"
        "from experiments.report.figures import front;"
        f"report.make_report([{str(folder)!r}], {str(tmp_path / 'out')!r});"
        "print(*{'jax', 'optax', 'lamaml_jax'} & {*sys.modules}, sep='')"
    )
    assert python(code).splitlines()[-1].endswith("svg,pdf")


def test_the_report_shows_records_and_draws_the_scaling(tmp_path):
    rows = [
        {"devices": d, "seeds": s, "meta_updates_per_s": 100.0 * d + s}
        for d, s in [(1, 1), (1, 5), (2, 5)]
    ]
    tall = bench.Result("One alone", [{"cpu_ms": 1.25, "compile_s": 12345.6}])
    file = tmp_path / "bench.json"
    scaling = bench.Record({}, [bench.Result("Seeds", rows)])
    bench.write(file, {"scaling": scaling, "update": bench.Record({}, [tall])})
    assert bench.lines(tall) == [
        ["quantity", "value"],
        ["cpu ms", "1.25"],
        ["compile s", "12346"],
    ]
    store_run(tmp_path / "run/er")
    console = Console(file=io.StringIO())
    report.make_report(
        [tmp_path / "run"], tmp_path / "out", benches=[file], console=console
    )
    page = (tmp_path / "out/report.html").read_text()
    assert "Seeds" in page and "205" in page and "12346" in page
    assert page.count("<img") == 4  # bars, curves, tasks and scaling
    assert (tmp_path / "out/scaling.png").read_bytes().startswith(b"\x89PNG")
