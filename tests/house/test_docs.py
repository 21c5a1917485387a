"""The documentation site: it builds without a network, every link resolves, every exported name is explained,
every page is listed.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import api_page
import check_site
import docs
import numpy as np
import pytest
from execnb.nbio import read_nb
from execnb.shell import CaptureShell

ROOT = Path(__file__).resolve().parents[2]

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
pytestmark = pytest.mark.xdist_group("docs")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site, built in a copy of the sources; also what the builder said."""
    copy = tmp_path_factory.mktemp("docs")
    for name in ("nbs", "tools", "tract7dt"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    done = subprocess.run(
        [sys.executable, "tools/docs.py", "--check"],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    return copy / "_proc" / "_docs", done


@pytest.fixture(scope="module")
def site(built):
    return built[0]


def words(page) -> str:
    return " ".join(check_site.Page(page).text.split())


def test_site_builds_and_nothing_is_wrong_with_it(built):
    """Links, cross references, entries of all exported names, docstrings, sidebar, nothing
    from the network.
    """
    site, done = built
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert len(list(site.rglob("*.html"))) == len(NOTEBOOKS)


def test_introductions_arrive(site):
    """What stands below the title of a notebook is on its page."""
    assert "builds the point spread function of every band" in words(site / "index.html")
    assert (site / "images" / "data_model_residual.png").exists()


def test_entry_has_signature_parameters_and_errors(site):
    text = words(site / "14_sample" / "make.html")
    assert "make_sample( dir: str = 'sample'" in text and "parameter type default meaning" in text
    assert "876 x 852 pixels with 400 sources" in text and "GalSim is missing" in text
    assert "../05_epsf/grid.html#epsfgrid" in check_site.Page(site / "07_patches" / "problem.html").links


def test_constants_are_shown(site):
    assert "EXIT_CODES = { # what an exit status says 0:" in words(site / "00_core" / "exit_codes.html")


def test_formulas_need_no_network(site):
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    assert sum("<math" in text for text in pages.values()) >= 5
    assert [path.name for path, text in pages.items() if 'class="math' in text] == []


def test_search_knows_every_page(site):
    found = {entry["href"].partition("#")[0] for entry in json.loads((site / "search.json").read_text())}
    assert {str(path.relative_to(site)) for path in site.rglob("*.html")} <= found


def ranked(site: Path, words: str) -> list[dict]:
    """What the search finds that has the words as they are typed, in the order of its script."""
    entries = json.loads((site / "search.json").read_text())
    found = [e for e in entries if words in f"{e['title']} {e['section']} {e['text']}"]
    return sorted(found, key=lambda entry: entry["inside"])


@pytest.mark.parametrize("words", ["ZP_AUTO", "crop.margin", "GAIN", "fit_is_reliable", "halo"])
def test_search_finds_pages_for_users_first(site, words):
    """Tutorials, keys, columns and messages come before the inside."""
    assert docs.USERS_FIRST in (site / "site_libs" / "smalldocs.js").read_text()
    assert ranked(site, words)[0]["href"].startswith(
        ("tutorials/", "reference/", "explanations/", "index.html")
    )


def test_keys_and_columns_are_found_by_name(site):
    titles = {entry["title"]: entry["href"] for entry in json.loads((site / "search.json").read_text())}
    assert titles["crop.margin"] == "reference/configuration.html#crop"
    assert titles["FLUXERR_{band}_fit"] == "reference/columns.html"


def test_sidebar_shows_tutorials_and_hides_the_inside(site):
    """Sections of tutorials and reference are open; each room is closed until one is in it."""
    text = (site / "index.html").read_text()
    shut = re.findall(r'aria-expanded="false"[^>]*aria-label="Toggle section"', text)
    assert len(shut) == len(list((ROOT / "nbs").glob("[0-9]*_*"))) and 'aria-expanded="true"' in text


def test_sidebar_has_every_notebook_once():
    assert check_site.not_in_the_sidebar(ROOT / "nbs") == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_title_has_a_cell_of_its_own(notebook):
    """nbdev makes front matter of the first cell and drops what else stands in it."""
    first = next(
        cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "markdown"
    )
    assert re.fullmatch(r"# \S.*\n\n> \S.*", "".join(first["source"]).strip())


@pytest.mark.parametrize("name", ["columns", "commands", "configuration", "errors"])
def test_generated_page_is_up_to_date(name, monkeypatch):
    """The stored tables are what the definitions give now; `python tools/notebooks.py NAME`
    makes them anew.
    """
    path = ROOT / "nbs" / "reference" / f"{name}.ipynb"
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(path.parent)
    shell = CaptureShell(path)
    for cell in read_nb(path).cells:
        if cell.cell_type == "code":
            stored = ["".join(o["data"]["text/markdown"]) for o in cell.outputs if "data" in o]
            made = ["".join(o["data"]["text/markdown"]) for o in shell.run(cell.source) if "data" in o]
            assert shell.exc is None and made == stored


def small_site(folder, **pages):
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    return folder


def test_links_that_lead_nowhere_are_found(tmp_path):
    site = small_site(
        tmp_path,
        a='<a href="b.html#there">x</a><a href="b.html#gone">x</a><img src="c.png"><a '
        'href="https://example.org/x">x</a>',
        b='<h2 id="there">x</h2><a href="#up">x</a>',
    )
    assert [line.split("link to ")[1].split()[0] for line in check_site.broken_links(site)] == [
        "b.html#gone",
        "c.png",
        "#up",
    ]


def test_loads_from_the_network_are_found(tmp_path):
    site = small_site(
        tmp_path, a='<script src="https://cdn.example.org/x.js"></script><a href="https://example.org">x</a>'
    )
    (site / "s.css").write_text(
        "@import url(https://fonts.example.org/css2?family=Lato); b { background: url(own.png) }"
    )
    assert [line.split("loads ")[1] for line in check_site.network_loads(site)] == [
        "https://cdn.example.org/x.js",
        "https://fonts.example.org/css2?family=Lato",
    ]


def test_a_notebook_outside_the_sidebar_is_found(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    (tmp_path / "sidebar.yml").write_text(
        "website:\n  sidebar:\n    contents:\n      - a.ipynb\n      - a.ipynb\n      - c.ipynb\n"
    )
    assert [line.split(": ")[1].split(" is")[0] for line in check_site.not_in_the_sidebar(tmp_path)] == [
        "a.ipynb",
        "b.ipynb",
        "c.ipynb",
    ]


def sample(a: int, /, b="x", *rest, c: "np.ndarray | None" = None) -> "pathlib.Path":
    """Do it.

    More.

    Parameters
    ----------
    a : int
        How | often.
    c : array [n, n], optional
        Where.

    Raises
    ------
    ValueError
        When <not>.
    """


def test_entry_of_a_function():
    text = api_page.explained(sample)
    assert "sample(a: int, b='x', *rest, c: ndarray | None = None) -> Path" in text
    assert (
        "| `a` | int |  | How \\| often. |" in text
        and "| `c` | array [n, n], optional | `None` | Where. |" in text
    )
    assert "| raises | ValueError | When &lt;not>. |" in text and "\n\nDo it.\n\nMore.\n\n" in text


def test_source_link_leads_to_the_definition():
    from tract7dt.core.errors import list_some

    line = next(
        n
        for n, text in enumerate((ROOT / "tract7dt" / "core" / "errors.py").read_text().splitlines(), 1)
        if text.startswith("def list_some")
    )
    assert f"/tract7dt/core/errors.py#L{line})" in api_page.source_link(list_some)


def test_constants_of_a_cell():
    assert (
        api_page.constants(
            "log = logging.getLogger(__name__)\nA = [1,\n     2]\n\ndef f():\n    B = 1\nC: int = 3"
        )
        == "A = [1,\n     2]\nC: int = 3"
    )


def test_each_notebook_points_to_the_next():
    """`python tools/pointers.py` writes the last cells anew."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "pointers.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
