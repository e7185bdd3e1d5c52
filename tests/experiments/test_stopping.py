"""Signals are answered in words at once, from the first import on."""

import os
import signal
import sys
import threading
import time

import pytest
from processes import ended, experiments, start

from experiments.support import stopping

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_a_signal_is_a_request_that_is_told_and_looked_for(number):
    told = []
    before = signal.getsignal(number)
    with stopping.requests(told.append) as stop:
        stop.check("nothing")
        os.kill(os.getpid(), number)
        assert told == [
            "stopping before the first task, when this step is done; once more to "
            "stop at once"
        ]
        with pytest.raises(stopping.Stopped, match=f"{number.name}: 3 of 4") as stopped:
            stop.check("3 of 4")
    assert stopped.value.status == 128 + number
    assert signal.getsignal(number) is before


def test_what_is_told_follows_what_goes_on():
    told = []
    with stopping.requests(told.append) as stop, stop.answering("saving"):
        os.kill(os.getpid(), signal.SIGINT)
    assert told == ["saving; once more to stop at once"]


def test_one_inside_another_is_the_other():
    with stopping.requests(print) as outer:
        with stopping.requests(print) as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGINT) is outer


def test_other_threads_take_no_signals():
    before, seen = signal.getsignal(signal.SIGINT), []

    def run():
        with stopping.requests(print) as stop:
            seen.append((stop.number, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


def test_a_signal_within_a_line_is_still_told(capfd):
    def busy(text):
        raise RuntimeError("reentrant call")

    with stopping.requests(busy):
        os.kill(os.getpid(), signal.SIGTERM)
    assert "stopping before the first task" in capfd.readouterr().err


SCENES = {
    "imports": ("stopping.exit_at_once()", "stopped at once; nothing is lost", 1),
    "clean": ("stopping.exit_cleanly()", "stopping; once more to stop at once", 1),
    "second": (
        "(held := stopping.requests(print), held.__enter__())",
        "stopped at once; the same command goes on",
        2,
    ),
}


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(("code", "text", "count"), SCENES.values(), ids=SCENES)
def test_a_process_ends_in_words_with_the_signals_status(code, text, count, number):
    program = (
        f"from experiments.support import stopping\nkeep = {code}\n"
        "print('ready', flush=True)\nimport time\n"
        "for _ in range(600): time.sleep(0.1)"
    )
    process = start([sys.executable, "-c", program])
    assert process.stdout.readline() == "ready\n"
    for _ in range(count):
        process.send_signal(number)
        time.sleep(0.2)
    out = ended(process, 128 + number)
    assert text in out and "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        ("", 0.5),
        ("", 1),
        ("", 2),
        ("results in", 0),
        ("compiling", 0),
        ("compiling", 0.5),
    ],
)
def test_before_the_first_task_a_run_answers_at_once_and_stops(
    after, seconds, tmp_path
):
    sizes = ["--seeds", "1", "--num-tasks", "4", "--devices", "1"]
    command = experiments("run", "-m", "lamaml", *sizes, "--out", tmp_path)
    process = start([*command, "--no-compile-cache"])
    while after and after not in (line := process.stdout.readline()):
        assert line, "the run ended"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    line = process.stdout.readline()
    while line and "stop" not in line:
        line = process.stdout.readline()
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 130, line + rest
    assert "once more to stop at once" in line or "stopped at once" in line, line
    assert "Traceback" not in rest and "error" not in rest
    assert not list(tmp_path.rglob("evaluations.jsonl")) or not any(
        path.read_text() for path in tmp_path.rglob("evaluations.jsonl")
    )
    assert not list(tmp_path.rglob(".holder.json"))
