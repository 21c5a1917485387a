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


@pytest.fixture(scope="session")
def middle_config(tmp_path_factory):
    """Configuration of the middle of the sample tile in three bands: enough for every stage, quick to run.

    Returns a function of dotted overrides; each call has a work directory of its own.
    """
    from tract7dt.configfile import load_config

    folder = tmp_path_factory.mktemp("middle")
    (folder / "images.txt").write_text("".join(f"{ROOT}/sample_data/images/{band}.fits.fz\n" for band in ("m500", "m650", "m750")))
    plain = {"inputs.image_list_file": str(folder / "images.txt"), "crop.margin": 250, "epsf.epsf_ngrid": 1, "epsf.ngrid": 2,
             "overlay.enabled": False, "patch_run.max_workers": 1, "patch_run.no_patch_overview": True, "patch_run.no_cutouts": True,
             "epsf.save_patch_background_diagnostics": False, "epsf.save_star_local_background_diagnostics": False,
             "epsf.save_growth_curve": False, "epsf.save_residual_diagnostics": False}

    def config(**changes):
        work = {"outputs.work_dir": str(tmp_path_factory.mktemp("work"))}
        return load_config(ROOT / "sample_data" / "config.yaml", plain | work | changes)
    return config


@pytest.fixture(scope="session")
def middle_run(middle_config):
    """The middle of the sample tile, run: configuration and result."""
    from tract7dt.pipeline import run

    cfg = middle_config()
    return cfg, run(cfg)


@pytest.fixture(scope="session")
def alone_run(middle_config):
    """The middle of the sample tile, each band fitted alone: configuration and result."""
    from tract7dt.pipeline import run

    cfg = middle_config(**{"patch_run.enable_multi_band_simultaneous_fitting": False})
    return cfg, run(cfg)
