"""No encoding of the terminal or log file loses a command."""

import io
import subprocess
import sys

import pytest
from processes import ROOT, experiments, run

from experiments.support import printing

ENCODINGS = ["ascii", "latin-1", "cp437", "utf-8"]


def test_what_an_encoding_lacks_is_spelt_and_the_rest_kept(monkeypatch):
    texts = {}
    for encoding in ENCODINGS:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        printing.never_fail()
        print("75.2 ± 0.6 … ━ 日")
        stream.flush()
        texts[encoding] = stream.buffer.getvalue().decode(encoding).strip()
    assert texts == {
        "ascii": "75.2 +- 0.6 ... - ?",
        "latin-1": "75.2 ± 0.6 ... - ?",
        "cp437": "75.2 ± 0.6 ... - ?",
        "utf-8": "75.2 ± 0.6 … ━ 日",
    }


def test_streams_that_are_no_files_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", object())
    monkeypatch.setattr(sys, "stderr", None)
    printing.never_fail()


def spawn(arguments, encoding):
    return run(
        experiments(*arguments),
        encoding=encoding,
        PYTHONIOENCODING=encoding,
        COLUMNS="80",
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", [["list"], ["run", "--help"]], ids=" ".join)
def test_a_command_prints_in_any_encoding(command, encoding):
    done = spawn(command, encoding)
    assert done.returncode == 0, done.stderr
    assert "lamaml" in done.stdout
    assert not done.stderr


@pytest.mark.slow
def test_a_reader_that_leaves_ends_nothing():
    code = """
from experiments.support import printing
console = printing.LastingConsole()
for line in range(2000):
    console.print("x" * 79)
import sys
sys.stderr.write("went on")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == "went on"
    process.stderr.close()
    assert process.wait(timeout=60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_a_run_is_not_lost_to_its_table(encoding, tmp_path):
    sizes = ["--seeds", "2", "--num-tasks", "2", "--rows-per-task", "20"]
    done = spawn(["run", "-m", "online", *sizes, "--out", tmp_path], encoding)
    assert done.returncode == 0, done.stderr
    shown = "+-" if encoding == "ascii" else "±"
    assert shown in done.stdout
    assert (tmp_path / "report/report.html").is_file()
    assert "±" in (tmp_path / "report/table.md").read_text(encoding="utf-8")
