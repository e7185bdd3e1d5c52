"""A file of a person's own is imported before a command looks names up."""

import json
import sys
from pathlib import Path

import pytest
from processes import said

from experiments.cli import app as cli
from experiments.cli import starting
from experiments.config import plugins
from experiments.support.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "experiments/examples/your_own.py"
TINY = ["-b", "own-digits", "--seeds", "1", "--num-tasks", "2", "--rows-per-task", "20"]


@pytest.fixture(autouse=True)
def forget_modules(registries):
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "site-packages" not in (getattr(sys.modules[name], "__file__", "") or ""):
            del sys.modules[name]


def call(arguments, monkeypatch, capsys):
    """Runs the command line in this process; returns exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["experiments", *map(str, arguments)])
    monkeypatch.setattr(starting, "start_jax", lambda devices, cache: None)
    monkeypatch.setattr(starting, "use_devices", lambda devices: None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, " ".join(out.split()), " ".join(err.split())


def test_a_file_is_imported_once_and_can_look_itself_up(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text(
        "import sys\nassert sys.modules[__name__]\n"
        "sys.path_hooks_seen = getattr(sys, 'path_hooks_seen', 0) + 1\n"
    )
    try:
        plugins.load([str(path), str(path)])
        assert sys.path_hooks_seen == 1
    finally:
        del sys.path_hooks_seen


def test_a_file_named_as_a_module_hides_nothing(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit")
    (tmp_path / "optax.py").write_text("VALUE = 1")
    plugins.load([str(tmp_path / "optax.py")])
    import optax

    assert optax.sgd


def test_a_module_is_looked_for_in_the_working_directory_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", ".")])
    (tmp_path / "only_here.py").write_text("")
    plugins.load(["only_here"])
    assert "only_here" in sys.modules
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.py", "--plugin nowhere.py: no such file"),
        ("nowhere.at.all", "--plugin nowhere.at.all: ModuleNotFoundError: No module"),
    ],
)
def test_what_is_not_there_is_an_error(text, message):
    with pytest.raises(UserError, match=message):
        plugins.load([text])


def test_an_error_in_the_file_is_told_with_its_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "wrong.py"
    path.write_text("import math\n\nmath.nothing\n")
    arguments = ["list", "--plugin", path]
    status, _, err = call(arguments, monkeypatch, capsys)
    assert status == 2
    assert f"{path}, line 3: AttributeError: module 'math' has no" in err
    assert "wrong" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", *TINY], "unknown benchmark 'own-digits'"),
        (["run", "-m", "averaged_er"], "unknown method 'averaged_er'"),
        (["run", "--network", "own-net"], "unknown network 'own-net'"),
        (["sweep", "--grid", "keep=0.5"], "received 'keep=[0.5]'"),
    ],
)
def test_own_names_are_unknown_without_the_plugin(
    arguments, message, monkeypatch, capsys
):
    status, _, err = call(arguments, monkeypatch, capsys)
    assert status == 2
    assert message in err


def test_a_list_names_what_is_registered(monkeypatch, capsys):
    status, out, _ = call(["list", "--plugin", EXAMPLE], monkeypatch, capsys)
    assert status == 0
    assert "own-digits digits in 5 tasks of 2 classes, 160 rows each" in out
    assert "averaged_er Averaged ER: replay, predicting with a running average" in out
    assert "reduced-resnet18-batchnorm, own-net" in out


def test_values_of_a_benchmark_without_presets_say_whose_they_are(monkeypatch, capsys):
    arguments = ["list", "own-digits", "--plugin", EXAMPLE]
    status, out, _ = call(arguments, monkeypatch, capsys)
    assert status == 0
    assert "Hyper-parameters of fashion-mnist-split, single pass" in out
    assert "│ keep │ 0.9 │" in out


def test_both_names_of_the_package_are_one_set_of_modules():
    import lamaml_experiments.methods.problem as long
    from experiments.methods import problem as short

    assert long is short
    assert long.__spec__.name == "experiments.methods.problem"
    assert sys.modules["lamaml_experiments"] is sys.modules["experiments"]


@pytest.mark.slow
def test_a_plugin_is_run_swept_and_reported_outside_of_the_checkout(tmp_path):
    """All of a person's own in one file, from a folder that has nothing else."""
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text())

    def spawn(*arguments):
        return said([sys.executable, *arguments], tmp_path, ROOT)

    command = ["-m", "experiments"]
    plugin = ["--plugin", "mine.py"]
    out = spawn(
        *(*command, "run", *plugin, "-b", "own-digits", "-m", "averaged_er,er"),
        *("--seeds", "2", "--set", "keep=0.8", "--out", "out"),
    )
    assert "has no presets for er: those of fashion-mnist-split, the nearest" in out
    stored = json.loads((tmp_path / "out/averaged_er/config.json").read_text())
    assert (stored["keep"], stored["network"]) == (0.8, "own-net")
    lines = (tmp_path / "out/averaged_er/evaluations.jsonl").read_text()
    assert json.loads(lines.splitlines()[-1])["train"].keys() == {"loss", "grad_norm"}
    summary = json.loads((tmp_path / "out/er/summary.json").read_text())
    # two classes, whose chance is a half, by a network that has seen 160 rows of them
    assert min(summary["learning_accuracy"]) > 0.8
    out = spawn(
        *(*command, "sweep", *plugin, *TINY, "-m", "averaged_er"),
        *("--grid", "keep=0.5,0.9"),
    )
    assert (
        "run --config sweeps/own-digits/averaged_er/best.json --plugin mine.py" in out
    )
    out = spawn(*command, "report", *plugin, "out", "--out", "tables")
    assert "Averaged ER" in out
