"""What several test modules share: the sample tile, run once, and the program, started quickly."""

import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("tract7dt")
LIBRARIES = [
    "numpy",
    "scipy.optimize",
    "scipy.interpolate",
    "pandas",
    "pydantic",
    "astropy.io.fits",
    "astropy.wcs",
    "astropy.table",
    "astropy.units",
    "astropy.stats",
    "photutils.psf",
    "sep",
    "matplotlib.pyplot",
    "IPython",
    "execnb.shell",
    "nbdev.test",
]
ROOMS = [
    "tract7dt.cli.main",
    "tract7dt.pipeline.commands",
    "tract7dt.reports.page",
    "tract7dt.results.model_images",
    "tract7dt.pipeline.batch",
]


@pytest.fixture(scope="session", autouse=True)
def loaded():
    """Processes that start as copies of one that has imported the libraries and the package, which takes
    seconds.

    It is started before any pool of the package, which would start one with less in it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES + ROOMS)
    forkserver.ensure_running()
    return context


@pytest.fixture
def own_garbage():
    """Connections that a library leaves to the garbage collector are collected here, and not under the eyes
    of a later test.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Done(NamedTuple):
    """How a program ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


def run_main(
    words: list[str], folder: Path | None, environment: dict[str, str], out: Path, err: Path
) -> None:
    """What the entry point of the program does in a process of its own, with its output in two files."""
    from tract7dt.cli.main import main

    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(folder or os.getcwd())
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(PROGRAM), *words]
    try:
        main()
    except Exception:
        sys.excepthook(*sys.exc_info())


@pytest.fixture(scope="session")
def program(loaded, tmp_path_factory):
    """Run the command line program; returns its exit code and what it printed.

    The process is a copy of one that has the imports behind it; `real_program` is what a terminal starts.
    """
    said = tmp_path_factory.mktemp("said")

    def call(*words, cwd=None):
        out, err = said / "out", said / "err"
        for path in (out, err):
            path.unlink(missing_ok=True)
        process = loaded.Process(target=run_main, args=([*map(str, words)], cwd, dict(os.environ), out, err))
        process.start()
        process.join(500)
        assert process.exitcode is not None, f"tract7dt {words}: still running after 500 s"
        return Done(process.exitcode, out.read_text(), err.read_text())

    return call


@pytest.fixture(scope="session")
def real_program():
    """Run the command line program as a terminal does; returns its exit code and what it printed."""

    def call(*words, cwd=None):
        done = subprocess.run(
            [PROGRAM, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=500
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def fresh_sample(tmp_path_factory):
    """Make a copy of the sample tile in a new folder; returns the folder."""

    def copy(name):
        folder = tmp_path_factory.mktemp(name) / "sample"
        shutil.copytree(ROOT / "sample_data", folder, ignore=shutil.ignore_patterns("work*"))
        return folder

    return copy


NO_PICTURES = "".join(
    f"  save_{name}: false\n"
    for name in (
        "patch_background_diagnostics",
        "star_local_background_diagnostics",
        "growth_curve",
        "residual_diagnostics",
    )
)


@pytest.fixture(scope="session")
def sample_run(real_program, fresh_sample):
    """The folder of a sample tile on which `tract7dt run` was run, without the pictures of stars, patches and
    sources.
    """
    folder = fresh_sample("run")
    config = folder / "config.yaml"
    config.write_text(
        config.read_text()
        .replace("\npatch_run:\n", "\npatch_run:\n  no_patch_overview: true\n  no_cutouts: true\n")
        .replace("\nepsf:\n", f"\nepsf:\n{NO_PICTURES}")
    )
    done = real_program("run", "--config", folder / "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def middle_config(tmp_path_factory):
    """Configuration of the middle of the sample tile in three bands: enough for every stage, quick to run.

    Returns a function of dotted overrides; each call has a work directory of its own.
    """
    from tract7dt.config.load import load_config

    folder = tmp_path_factory.mktemp("middle")
    (folder / "images.txt").write_text(
        "".join(f"{ROOT}/sample_data/images/{band}.fits.fz\n" for band in ("m500", "m650", "m750"))
    )
    plain = {
        "inputs.image_list_file": str(folder / "images.txt"),
        "crop.margin": 250,
        "epsf.epsf_ngrid": 1,
        "epsf.ngrid": 2,
        "overlay.enabled": False,
        "patch_run.max_workers": 1,
        "patch_run.no_patch_overview": True,
        "patch_run.no_cutouts": True,
        "epsf.save_patch_background_diagnostics": False,
        "epsf.save_star_local_background_diagnostics": False,
        "epsf.save_growth_curve": False,
        "epsf.save_residual_diagnostics": False,
    }

    def config(**changes):
        work = {"outputs.work_dir": str(tmp_path_factory.mktemp("work"))}
        return load_config(ROOT / "sample_data" / "config.yaml", plain | work | changes)

    return config


@pytest.fixture(scope="session")
def middle_run(middle_config):
    """The middle of the sample tile, run: configuration and result."""
    from tract7dt.pipeline.commands import run

    cfg = middle_config()
    return cfg, run(cfg)


@pytest.fixture(scope="session")
def alone_run(middle_config):
    """The middle of the sample tile, each band fitted alone: configuration and result."""
    from tract7dt.pipeline.commands import run

    cfg = middle_config(**{"patch_run.enable_multi_band_simultaneous_fitting": False})
    return cfg, run(cfg)


@pytest.fixture(scope="session")
def cells_run(middle_config):
    """The middle of the sample tile in four cells of four patches each, run: configuration and result."""
    from tract7dt.pipeline.commands import run

    cfg = middle_config(
        **{
            "epsf.epsf_ngrid": 2,
            "plotting.dpi": 40,
            "crop.plot_pre_crop": False,
            "crop.plot_post_crop": False,
        }
    )
    return cfg, run(cfg)
