"""What several test modules share: the sample tile, run once."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("tract7dt")


@pytest.fixture(scope="session")
def program():
    """Run the command line program; returns the finished process."""
    def call(*words, cwd=None):
        return subprocess.run([PROGRAM, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=500)
    return call


@pytest.fixture(scope="session")
def fresh_sample(tmp_path_factory):
    """Make a copy of the sample tile in a new folder; returns the folder."""
    def copy(name):
        folder = tmp_path_factory.mktemp(name) / "sample"
        shutil.copytree(ROOT / "sample_data", folder, ignore=shutil.ignore_patterns("work"))
        return folder
    return copy


@pytest.fixture(scope="session")
def sample_run(program, fresh_sample):
    """The folder of a sample tile on which `tract7dt run` was run."""
    folder = fresh_sample("run")
    done = program("run", "--config", folder / "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
