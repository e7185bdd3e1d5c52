"""How a run is watched and ended: loggers, progress, signals."""

import io
import signal
import struct
import time
from pathlib import Path

import numpy as np
import processes
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from experiments import run_folder
from experiments.support import progress
from experiments.support.errors import UserError
from experiments.training import loggers

ROOT = Path(__file__).parents[2]


def record(task, seed=0):
    return {
        "seed": seed,
        "task": task,
        "accuracy": [0.5, float("nan")],
        "retained_accuracy": 0.25 + task,
        "train": {"meta_loss": 2.0 - task},
    }


def events(folder):
    """Reads event files as TensorBoard does: records with a length and two sums."""
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = io.BytesIO(path.read_bytes())
        while header := data.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            yield Event.FromString(data.read(length))
            data.read(4)


def scalars(folder):
    return [
        (value.tag, event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    ]


def all_scalars(folder, count):
    """Waits for the writer's thread."""
    for _ in range(200):
        found = scalars(folder)
        if len(found) >= count:
            break
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_tensorboard_gets_every_figure_and_goes_on(tmp_path):
    log = loggers.tensorboard()
    for task in range(3):
        log(tmp_path, record(task))
    log(tmp_path, record(0, seed=1))
    found = all_scalars(tmp_path / "tensorboard/seed-0", 9)
    assert ("retained_accuracy", 2, 1.25) in found
    assert ("accuracy/task-000", 3, 0.5) in found
    assert ("train/meta_loss", 3, 0.0) in found
    assert not any(np.isnan(value) for *_, value in found)
    assert len(all_scalars(tmp_path / "tensorboard/seed-1", 3)) == 3
    time.sleep(1.1)  # event files are named by the second
    again = loggers.tensorboard()
    again(tmp_path, record(1))
    all_scalars(tmp_path / "tensorboard/seed-0", 12)
    starts = [
        event.step
        for event in events(tmp_path / "tensorboard/seed-0")
        if event.HasField("session_log")
    ]
    assert starts[-1] == 2, "what came after the checkpoint is not struck out"


def collect(folder, line):
    collect.seen.append((folder, line["task"]))


collect.seen = []


def test_any_function_is_a_logger(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    log = loggers.load("test_watch:collect")
    log(Path("x"), record(4))
    assert log.seen == [(Path("x"), 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere:log", "--logger nowhere:log: No module named"),
        ("math:no", "--logger math:no: .*no attribute"),
        ("math:pi", "expected MODULE:FUNCTION"),
        ("math", "--logger math: "),
        (":", "--logger :: "),
    ],
)
def test_what_is_no_logger_is_told(text, message):
    with pytest.raises(UserError, match=message):
        loggers.load(text)


def test_a_log_file_gets_lines(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    console = Console(file=text, width=100)
    with progress.show_progress("er", 20, console) as show:
        for task in range(20):
            now[0] += 10
            show(task + 1, f"note {task + 1}")
    lines = text.getvalue().splitlines()
    assert lines[0] == "er: 3/20 tasks  note 3"
    assert lines[-1] == "er: 20/20 tasks  note 20"
    assert len(lines) == 7


def test_a_terminal_gets_a_bar():
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True)
    with progress.show_progress("er", 2, console) as show:
        show(2, "done")
    assert "2/2" in text.getvalue() and "━" in text.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(number, tmp_path):
    def start(out):
        sizes = ["--seeds", "2", "--num-tasks", "30"]
        options = ["--out", out, "--logger", "builtins:print"]
        return processes.start(
            processes.experiments("run", "-m", "er", *sizes, *options)
        )

    process = start(tmp_path / "parts")
    lines = tmp_path / "parts/er/evaluations.jsonl"
    while process.poll() is None:
        if lines.is_file() and lines.read_text().count("\n") >= 4:
            break
        time.sleep(0.001)
    process.send_signal(number)
    text = processes.ended(process, 128 + number)
    said = " ".join(text.split())
    assert "saving after this task; once more to stop at once" in said
    assert f"stopped by {number.name}: " in said
    assert f" of 30 tasks of er are saved in {tmp_path}/parts/er; the same" in said
    assert "same command goes on from there" in said
    assert "error" not in said
    assert "Traceback" not in text
    done = lines.read_text().count("\n") // 2
    assert 2 <= done < 30
    text = processes.ended(start(tmp_path / "parts"))
    assert f"goes on from task {done}" in text
    assert text.count("'retained_accuracy'") == 2 * (30 - done)  # by the logger
    processes.ended(start(tmp_path / "whole"))
    parts, whole = (
        run_folder.read(tmp_path / name / "er") for name in ("parts", "whole")
    )
    for name in whole.arrays:
        np.testing.assert_array_equal(parts.arrays[name], whole.arrays[name])
