"""Notebooks are the source: they run, they are clean, and the modules are what they export."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
BIN = Path(sys.executable).parent


def run_notebook(notebook: Path, output: Path) -> None:
    """What `nbdev_test` does with a notebook; exits with 1 where a cell fails, which `output` tells about."""
    from nbdev.test import test_nb

    with output.open("w") as text, redirect_stdout(text), redirect_stderr(text):
        passed, _ = test_nb(notebook, skip_flags=["notest", "slow"], basepath=ROOT)
    sys.exit(not passed)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_notebook_runs(notebook, loaded, tmp_path):
    """Every cell runs and every assertion in it holds."""
    process = loaded.Process(target=run_notebook, args=(notebook, tmp_path / "output.txt"))
    process.start()
    process.join(300)
    process.kill()
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()[-4000:]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of what nbdev reads and writes, exported and cleaned anew."""
    copy = tmp_path_factory.mktemp("copy")
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".last_checked")
    for folder in ("nbs", "tract7dt"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    for command in ("nbdev_export", "nbdev_clean"):
        done = subprocess.run([BIN / command], cwd=copy, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    return copy


def same_files(a: Path, b: Path, pattern: str) -> list[str]:
    """Names of files below two folders that differ or are in one of them only."""
    names = {
        p.relative_to(top)
        for top in (a, b)
        for p in top.rglob(pattern)
        if not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)
    }
    return sorted(
        str(n)
        for n in names
        if not ((a / n).exists() and (b / n).exists() and (a / n).read_bytes() == (b / n).read_bytes())
    )


def test_modules_are_what_the_notebooks_export(copy):
    assert same_files(ROOT / "tract7dt", copy / "tract7dt", "*.py") == []


def test_notebooks_are_clean(copy):
    assert same_files(ROOT / "nbs", copy / "nbs", "*.ipynb") == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_cells_have_names_of_their_own(notebook):
    """Two cells of one name are one cell for whoever links to it or merges."""
    names = [cell["id"] for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    assert [name for name in names if names.count(name) > 1] == []


def test_no_module_without_its_notebook():
    for module in (ROOT / "tract7dt").rglob("*.py"):
        source = [line for line in module.read_text().splitlines()[:5] if "File to edit:" in line]
        for line in source:
            assert (module.parent / line.split("File to edit: ")[1].rstrip(".")).exists(), (
                f"{module}: its notebook is gone"
            )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_notebook_is_light_and_without_stored_errors(notebook):
    assert notebook.stat().st_size < 1_000_000
    for cell in json.loads(notebook.read_text())["cells"]:
        assert all(out["output_type"] != "error" for out in cell.get("outputs", []))


PRIVATE = re.compile(r"(?<!\w)(?<!\.)/(work|home|root|Users)/")


def texts(cell: dict) -> list[str]:
    """What a cell says in words: its source and its outputs, without pictures."""
    outputs = cell.get("outputs", [])
    data = [
        value
        for output in outputs
        for kind, value in output.get("data", {}).items()
        if not kind.startswith("image/")
    ]
    return [
        "".join(text) for text in [cell["source"], *data, *(output.get("text", "") for output in outputs)]
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_notebook_has_no_path_of_one_machine(notebook):
    """`python tools/notebooks.py --paths` removes them from stored outputs."""
    for cell in json.loads(notebook.read_text())["cells"]:
        found = [
            line
            for text in texts(cell)
            for line in text.splitlines()
            if str(ROOT) in line or PRIVATE.search(line)
        ]
        assert not found, found[0]


def test_readme_is_the_twin_of_the_index():
    """README.md is written by tools/readme.py from nbs/index.ipynb."""
    assert subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--check"]).returncode == 0
