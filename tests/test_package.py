"""What is built and installed: library and experiments, from sdist and wheel."""

import json
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from processes import ROOT, said

USE = """
import sys
import jax, jax.numpy as jnp
import lamaml_jax as lm
assert lm.__file__.startswith(sys.argv[1]), lm.__file__
tx = lm.lamaml(lambda w, batch: (w - batch) ** 2, inner_steps=2)
weights = jnp.float32(0)
state = tx.init(weights)
data = dict(support=jnp.ones((2, 1)), query=jnp.ones(3))
updates, state = tx.update(jnp.float32(0), state, weights, **data)
assert updates > 0
unwanted = {"flax", "orbax", "sklearn", "matplotlib", "tensorflow", "experiments"}
unwanted |= {"lamaml_experiments"}
assert not unwanted & sys.modules.keys(), unwanted & sys.modules.keys()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the sdist, and the wheel from the sdist, as an index would get them."""
    out = tmp_path_factory.mktemp("dist")
    said([sys.executable, "-m", "build", "-o", out, ROOT], ROOT, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_holds_library_and_experiments_and_no_other_name(built):
    with zipfile.ZipFile(built[1]) as file:
        names = file.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "lamaml_jax",
        "lamaml_experiments",
    }
    sources = (ROOT / "experiments").rglob("*.py")
    expected = {str(path.relative_to(ROOT / "experiments")) for path in sources}
    expected |= {"report/page.css", "report/page.js"}
    long = "lamaml_experiments/"
    assert {n.removeprefix(long) for n in names if n.startswith(long)} == expected
    modules = {path.name for path in (ROOT / "lamaml_jax").glob("*.py")}
    inside = {Path(n).name for n in names if n.startswith("lamaml_jax/")}
    assert inside == modules | {"py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_sdist_can_be_built_from(built):
    with tarfile.open(built[0]) as file:
        names = {name.split("/", 1)[-1] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "lamaml_jax/py.typed"} <= names


@pytest.mark.slow
def test_the_wheel_is_used_without_the_checkout(built, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    said([*pip, "--target", tmp_path / "site", built[1]], tmp_path, tmp_path)
    said([sys.executable, "-c", USE, tmp_path / "site"], tmp_path, tmp_path / "site")


@pytest.mark.slow
def test_the_command_works_from_any_folder_once_installed(built, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    said([*pip, "--target", site, built[1]], tmp_path, tmp_path)
    mine = (ROOT / "experiments/examples/your_own.py").read_text()
    (tmp_path / "mine.py").write_text(mine)
    # A project may have a package of its own by that name in the same folder.
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/__init__.py").write_text("raise SystemExit('theirs')")

    def spawn(*command):
        return said(command, tmp_path, site)

    lamaml = sys.executable, str(site / "bin/lamaml")
    assert "Usage: lamaml run" in spawn(*lamaml, "run", "--help")
    options = ["-b", "own-digits", "-m", "averaged_er", "--seeds", "1"]
    spawn(*lamaml, "run", "--plugin", "mine.py", *options, "--out", "out")
    stored = json.loads((tmp_path / "out/averaged_er/environment.json").read_text())
    assert stored["command"].startswith("lamaml run --plugin mine.py")
    assert stored["git_commit"] is None
    module = sys.executable, "-P", "-m", "lamaml_experiments"
    assert "out/averaged_er is complete" in spawn(
        *module, "run", "--plugin", "mine.py", *options, "--out", "out"
    )
    spawn(sys.executable, "mine.py")
    assert (tmp_path / "report/report.html").is_file()
    assert (tmp_path / "runs/own-digits/lamaml/summary.json").is_file()


def test_version_and_python_are_said_once():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["pyright"]["typeCheckingMode"] == "strict"
    citation = (ROOT / "CITATION.cff").read_text()
    init = (ROOT / "lamaml_jax/__init__.py").read_text()
    version = init.split('__version__ = "')[1].split('"')[0]
    assert f"version: {version}\n" in citation
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
