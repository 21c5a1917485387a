"""The package as others get it: built from a copy of the sources, installed into empty environments, run
outside of the repository.

uv builds and installs; its cache makes that cheap. Without uv or a package index these tests are skipped, and
fail where `CI` is set.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

from tract7dt import __version__
from tract7dt.results.merge import read_catalog

pytestmark = pytest.mark.xdist_group("install")
ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
FOLDERS = ("tract7dt", "nbs", "tests", "tools", "benchmarks", "sample_data")
FILES = (
    "settings.ini",
    "setup.py",
    "pyproject.toml",
    "pytest.ini",
    "Makefile",
    "MANIFEST.in",
    "LICENSE",
    ".ci/run",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".last_checked", "work", "work_*")
OURS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def settings() -> dict[str, str]:
    """What settings.ini says."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def cannot(reason: str) -> None:
    """End a test that cannot be made here: skipped on somebody's computer, failed in CI, where nobody would
    notice.
    """
    stop = pytest.skip if os.environ.get("CI", "").lower() in ("", "0", "false") else pytest.fail
    stop(reason)


def outside(folder: Path, *words, text: str | None = None) -> subprocess.CompletedProcess:
    """Run something in a folder, without what leads Python to the repository or to an environment."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    } | OURS
    return subprocess.run(
        [*map(str, words)],
        cwd=folder,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=500,
    )


def done(folder: Path, *words) -> str:
    """What something that ends well says on standard output."""
    process = outside(folder, *words)
    assert process.returncode == 0, (
        f"{[*map(str, words)]}\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    )
    return process.stdout


class Place(NamedTuple):
    """An environment with the package, and a folder to work in."""

    bin: Path
    folder: Path

    def python(self, *words) -> str:
        return done(self.folder, self.bin / "python", *words)

    def program(self, *words) -> str:
        return done(self.folder, self.bin / "tract7dt", *words)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A package index that answers."""
    if not UV.exists():
        cannot("uv is not installed (it is in the dev requirements)")
    asked = outside(
        tmp_path_factory.mktemp("index"), UV, "pip", "compile", "-q", "-", text="setuptools>=64\n"
    )
    if asked.returncode:
        cannot(f"no package index: {asked.stderr.strip()[-300:]}")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what belongs to the sources, without git and without what an earlier build left."""
    copy = tmp_path_factory.mktemp("sources")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=LEFT_BEHIND)
    for name in FILES:
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


def files_below(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(index, sources, tmp_path_factory):
    """Source distribution, and the wheel that is built from it."""
    before, folder = files_below(sources), tmp_path_factory.mktemp("dist")
    done(folder, UV, "build", "-q", sources, "--out-dir", folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel, before


def install(folder: Path, *words) -> Place:
    """An empty environment into which uv installs what the words say."""
    done(folder, UV, "venv", "-q", "--python", sys.executable, folder / "env")
    done(folder, UV, "pip", "install", "-q", "--python", folder / "env" / "bin" / "python", *words)
    return Place(folder / "env" / "bin", folder)


@pytest.fixture(scope="module")
def from_sdist(built, tmp_path_factory):
    return install(tmp_path_factory.mktemp("sdist"), built[0])


@pytest.fixture(scope="module")
def from_wheel(built, tmp_path_factory):
    return install(tmp_path_factory.mktemp("wheel"), built[1])


def metadata(wheel: Path) -> email.message.Message:
    """What a wheel says about itself."""
    with zipfile.ZipFile(wheel) as packed:
        return email.message_from_bytes(
            packed.read(next(name for name in packed.namelist() if name.endswith(".dist-info/METADATA")))
        )


def floors(wheel: Path) -> list[Requirement]:
    """What the package requires, with its extras for users."""
    needed = [Requirement(text) for text in metadata(wheel).get_all("Requires-Dist")]
    return [
        each
        for each in needed
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("dask", "parquet"))
    ]


@pytest.fixture(scope="module")
def at_floors(built, tmp_path_factory):
    """The wheel with the lowest versions that it allows, as far as they are built for this Python."""
    folder, lowest = (
        tmp_path_factory.mktemp("floors"),
        [f"{each.name}{each.specifier}" for each in floors(built[1])],
    )
    return install(folder, "--resolution", "lowest-direct", "--only-binary", ":all:", built[1], *lowest)


def test_source_distribution_is_the_repository(built):
    """Whoever has it has the notebooks, can build the package and pass its tests."""
    sdist, _, sources = built
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames() if not packed.getmember(name).isdir()}
    assert sources - names == set()
    assert {name for name in names - sources if not name.startswith("tract7dt.egg-info/")} == {
        "PKG-INFO",
        "setup.cfg",
    }


def test_wheel_is_the_package(built):
    """All files of the package, nothing else, and no tests."""
    with zipfile.ZipFile(built[1]) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
    assert names == {name for name in built[2] if name.startswith("tract7dt/")}


def test_wheel_says_what_it_is(built):
    told, known = metadata(built[1]), settings()
    assert (told["Name"], told["Version"], told["Requires-Python"]) == (
        "tract7dt",
        known["version"],
        f">={known['min_python']}",
    )
    assert told["Description-Content-Type"] == "text/markdown" and told.get_payload(decode=True).decode() == (
        ROOT / "README.md"
    ).read_text(encoding="utf-8")
    assert (told["Home-page"], told["License-File"]) == (known["git_url"], "LICENSE")


ASK = (
    "import tract7dt, importlib.metadata as m; print(m.version('tract7dt'), "
    "m.metadata('tract7dt')['Home-page'], tract7dt.__file__)"
)


@pytest.mark.parametrize("way", ["from_sdist", "from_wheel"])
def test_installed_program_answers(way, request):
    """Its own files answer, and a configuration is written."""
    place = request.getfixturevalue(way)
    version, home, path = place.python("-c", ASK).split()
    assert (version, home) == (__version__, settings()["git_url"]) and Path(path).is_relative_to(
        place.bin.parent
    )
    assert (
        place.program("--version")
        == place.python("-m", "tract7dt", "--version")
        == f"tract7dt {__version__}\n"
    )
    place.program("dump-config", "--out", "config.yaml")
    assert yaml.safe_load((place.folder / "config.yaml").read_text())["patch_run"]["engine"] == "native"


def small_run(way, place: Place) -> pd.DataFrame:
    """The catalog of a run of less than the middle of the sample tile, in one process."""
    tile = place.folder / "tile"
    shutil.copytree(ROOT / "sample_data", tile, ignore=LEFT_BEHIND)
    config = yaml.safe_load((tile / "middle.yaml").read_text())
    config["crop"]["margin"], config["patch_run"]["max_workers"], config["epsf"]["max_workers"] = 300, 1, 1
    (tile / "small.yaml").write_text(yaml.safe_dump(config))
    way("run", "tile/small.yaml")
    return read_catalog(tile / "work_middle" / "output_catalog.csv")


@pytest.fixture(scope="module")
def catalog(from_wheel):
    return small_run(from_wheel.program, from_wheel)


def test_installed_program_runs(catalog, from_wheel):
    """Every row of the catalog is in the output, with pictures and zero points beside it."""
    work = from_wheel.folder / "tile" / "work_middle"
    assert (
        len(catalog)
        == len(pd.read_csv(ROOT / "sample_data" / "catalog.csv")) + catalog.ID.str.startswith("gaia_").sum()
    )
    assert catalog.fit_is_reliable.sum() > 20 and catalog.MAG_m500_fit.notna().sum() > 20
    assert list(work.glob("ZP/*.png")) and list(work.glob("outputs/*/*.png"))


def test_lowest_versions_run(catalog, at_floors):
    """The same fluxes, to a hundredth of their errors, with `python -m tract7dt`."""
    low = small_run(lambda *words: at_floors.python("-m", "tract7dt", *words), at_floors)
    assert low.fit_is_reliable.tolist() == catalog.fit_is_reliable.tolist()
    same = ["ID", "RA", "DEC", "FLUX_m500"]
    assert low[same].equals(catalog[same]), "what was read is written to the last digit"
    for band in ("m500", "m650", "m750"):
        off = (low[f"FLUX_{band}_fit"] - catalog[f"FLUX_{band}_fit"]) / catalog[f"FLUXERR_{band}_fit"]
        assert off.abs().max() < 0.01


EVERYTHING = """
import importlib, pkgutil, distributed, pandas, tract7dt
for module in pkgutil.walk_packages(tract7dt.__path__, "tract7dt."):
    importlib.import_module(module.name)
table = pandas.DataFrame({"ID": ["a"]})
table.to_parquet("a.parquet")
assert pandas.read_parquet("a.parquet").equals(table)
assert tract7dt.core.reading.to_float(pandas.Series(["1.9981763862473914"]))[0] == 1.9981763862473914
"""


def test_lowest_versions_have_all_that_is_imported(at_floors):
    """Every module, the inspectors too, and what the extras are for; numbers are read to the last digit."""
    at_floors.python("-c", EVERYTHING)


def test_lowest_versions_are_those_that_are_told(built, at_floors):
    """With the oldest Python a floor is a version that can be installed, so what is said is
    what was tested.
    """
    listed = done(
        at_floors.folder, UV, "pip", "freeze", "-q", "--python", at_floors.bin / "python"
    ).splitlines()
    found = dict(line.lower().split("==") for line in listed if "==" in line)
    told = {
        each.name: next(part.version for part in each.specifier if part.operator == ">=")
        for each in floors(built[1])
    }
    assert {
        name
        for name, version in told.items()
        if not Requirement(f"x>={version}").specifier.contains(found[name])
    } == set()
    if "{}.{}".format(*sys.version_info) == settings()["min_python"]:
        assert {
            name: found[name]
            for name, version in told.items()
            if not Requirement(f"x=={version}").specifier.contains(found[name])
        } == {}


@pytest.mark.parametrize("kind", ["requirements", "dask_requirements", "parquet_requirements"])
def test_every_requirement_has_a_floor(kind):
    """Without one, an old version that is there already stays."""
    assert [each for each in settings()[kind].split() if not re.search(r">=\d", each)] == []


@pytest.mark.parametrize(
    "ci, ends",
    [
        (None, pytest.skip.Exception),
        ("", pytest.skip.Exception),
        ("true", pytest.fail.Exception),
        ("1", pytest.fail.Exception),
    ],
)
def test_nothing_is_skipped_in_ci(ci, ends, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    with pytest.raises(ends, match="no package index"):
        cannot("no package index")


def test_ci_says_that_it_is_ci():
    assert re.search(r'^export CI="\$\{CI:-true\}"', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
