"""Inspectors in a real browser: JupyterLab serves a notebook, Chromium turns the controls, pictures and
numbers must follow.

Skipped where Chromium, playwright or JupyterLab are missing. With TRACT7DT_SCREENSHOTS set to a folder,
screenshots are left there.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest

from tract7dt.results.finished import open_run
from tract7dt.results.merge import read_catalog
from tract7dt.widgets.base import screen_png
from tract7dt.widgets.epsf import cell_lines, read_band_view, read_summary
from tract7dt.widgets.patch import SOURCE_HEAD, PatchInspector, patch_sheet, source_lines
from tract7dt.widgets.run import TABS
from tract7dt.widgets.source import SourceInspector
from tract7dt.widgets.zero_points import Knobs, ZeroPointInspector, read_stars, zero_point_view, zp_lines

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LAB = Path(sys.executable).with_name("jupyter-lab")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (it is in the dev requirements)"
)
pytestmark = [
    pytest.mark.xdist_group("inspectors"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
    pytest.mark.skipif(
        not LAB.exists(), reason="JupyterLab is not installed (it is in the dev requirements)"
    ),
]
NAMES = {
    "epsf": "EPSFInspector",
    "patch": "PatchInspector",
    "source": "SourceInspector",
    "zp": "ZeroPointInspector",
}
ALL_IN_ONE = "RunInspector"
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000
PICTURES = {"EPSFInspector": 5, "PatchInspector": 4, "SourceInspector": 2, "ZeroPointInspector": 1}


def notebook(work: Path, names) -> dict:
    """A notebook with a cell for each of some inspectors."""
    sources = [f"from tract7dt.widgets.run import {', '.join(names)}"]
    sources += [f"{name}({str(work)!r})" for name in names]
    cells = [
        {
            "cell_type": "code",
            "id": f"c{k}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for k, source in enumerate(sources)
    ]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def work(cells_run):
    """The work directory of a finished run: four cells of four patches, three bands."""
    return Path(cells_run[0].outputs.work_dir)


@pytest.fixture(scope="module")
def catalog(work):
    return read_catalog(work / "output_catalog.csv")


@pytest.fixture(scope="module")
def lab(work, tmp_path_factory):
    """JupyterLab with two notebooks, in folders of its own; yields its address."""
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "JUPYTER_CONFIG_DIR" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    (folder / "view.ipynb").write_text(json.dumps(notebook(work, NAMES.values())))
    (folder / "tabs.ipynb").write_text(json.dumps(notebook(work, [ALL_IN_ONE])))
    homes = {
        name: str(folder / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    port = free_port()
    command = [
        LAB,
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
    ]
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while (
            not answers(f"http://127.0.0.1:{port}/api")
            and server.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.2)
        assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def chromium():
    """Chromium, started."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


def run_all_cells(chromium, address: str):
    """A notebook in Chromium, its cells about to be run."""
    page = chromium.new_page(viewport={"width": 1500, "height": 1400})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}?reset")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    return page


@pytest.fixture(scope="module")
def page(lab, chromium):
    """The notebook in Chromium, all cells run, all inspectors shown."""
    page = run_all_cells(chromium, f"{lab}/lab/tree/view.ipynb")
    for name in NAMES.values():
        page.wait_for_selector(f".{name} img", state="attached")
    yield page
    page.close()


@pytest.fixture(scope="module")
def tabs(lab, chromium):
    """The notebook with all inspectors in one widget, whose first tab is shown."""
    page = run_all_cells(chromium, f"{lab}/lab/tree/tabs.ipynb")
    shown = page.wait_for_selector(
        f".{ALL_IN_ONE} .EPSFInspector img, :text('Error displaying widget')", state="attached"
    )
    assert "Error" not in shown.inner_text(), shown.inner_text()
    yield page
    page.close()


PIXELS = """name => [...document.querySelectorAll(`.${name} img`)].filter(i => i.naturalWidth).map(i => {
    const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
    c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL(); })"""
TEXT = (
    "name => [...document.querySelectorAll(`.${name} .widget-html-content`)].map(e => "
    "e.innerText).join('\\n')"
)
CELLS = "name => [...document.querySelectorAll(`.${name} td, .${name} th`)].map(e => e.innerText)"


def state(page, name: str) -> tuple[tuple[str, ...], str]:
    """Pixels of all pictures and all texts of an inspector, as the browser has them."""
    return tuple(page.evaluate(PIXELS, name)), page.evaluate(TEXT, name)


def changed(page, name: str, before, pictures: int) -> tuple:
    """Wait until at least so many pictures and the texts differ from before; returns the new state."""
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        now = state(page, name)
        if len(set(now[0]) - set(before[0])) >= pictures and now[1] != before[1]:
            return now
        page.wait_for_timeout(100)
    raise AssertionError(
        f"{name}: {len(set(now[0]) - set(before[0]))} of {pictures} pictures changed, texts changed: "
        f"{now[1] != before[1]}"
    )


def painted_pixels(page, png: bytes) -> str:
    """A PNG file as the browser paints it, to be compared with what it shows."""
    return page.evaluate(
        """async data => { const i = new Image(); i.src = `data:image/png;base64,${data}`; await i.decode();
        const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
        c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL(); }""",
        b64encode(png).decode(),
    )


def numbers(page, name: str, rows) -> bool:
    """Whether all cells of the rows are in the tables of an inspector, each row's one after the other."""
    told = "\n".join(page.evaluate(CELLS, name))
    return all("\n".join(str(cell) for cell in row) in told for row in rows)


def screenshot(page, name: str, what: str) -> None:
    folder = os.environ.get("TRACT7DT_SCREENSHOTS")
    if folder:
        page.locator(f".{name}").screenshot(path=Path(folder) / f"{name}_{what}.png")


def selector(page, name: str, label: str):
    """The dropdown of an inspector with a label."""
    return page.locator(f'.{name} .widget-dropdown:has(label:text-is("{label}")) select')


def click(page, name: str, picture: int, across: float, down: float) -> None:
    """Click into a picture of an inspector, at shares of its width and height."""
    image = page.locator(f".{name} img").nth(picture)
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])


def test_another_band_shows_another_epsf(page, work):
    """Grid, stamp, growth curve and map are others; the numbers are those of the new band's record."""
    name, run = "EPSFInspector", open_run(work)
    before = state(page, name)
    selector(page, name, "band").select_option(label="m750")
    changed(page, name, before, 4)
    view = read_band_view(run.layout, "m750", read_summary(run.layout)["m750"])
    assert numbers(page, name, cell_lines(view.cells["r00_c00"]))
    screenshot(page, name, "band")


def test_a_click_on_a_stamp_chooses_its_cell(page, work):
    name, run, cell = "EPSFInspector", open_run(work), selector(page, "EPSFInspector", "cell")
    before = state(page, name)
    assert cell.input_value().startswith("r00_c00")
    click(page, name, 0, 0.75, 0.75)
    changed(page, name, before, 3)
    assert cell.input_value().startswith("r00_c01"), "the lower right cell of four"
    view = read_band_view(run.layout, "m750", read_summary(run.layout)["m750"])
    assert numbers(page, name, cell_lines(view.cells["r00_c01"]))
    screenshot(page, name, "cell")


def test_a_click_on_the_map_shows_that_patch(page, work, catalog):
    name = "PatchInspector"
    before = state(page, name)
    click(page, name, 1, 0.75, 0.25)
    changed(page, name, before, 2)
    tag = "r00_c00_pr01_pc01"
    assert selector(page, name, "patch").input_value() == tag
    listed = page.locator(f".{name} .widget-select select").inner_text().split()
    assert set(catalog.ID[catalog.patch_tag == tag]) <= set(listed)
    screenshot(page, name, "patch")


def test_a_click_on_a_source_in_the_picture_chooses_it(page, work):
    """The third panel, where a source's residual is; the list, the cross-hair and the numbers follow."""
    name, twin = "PatchInspector", PatchInspector(work)
    twin.patch.value = selector(page, name, "patch").input_value()
    view, marks = twin.view(), twin.view().paint.white_marks
    height, width = view.paint.white.data.shape
    inside = [row for row in set(twin.triple.targets) if row != twin.source.value]
    row = min(inside, key=lambda row: np.hypot(marks.x[row] - width / 2, marks.y[row] - height / 2))
    before, spot = state(page, name), page.locator(f'.{name} button[title^="{view.sources.ID[row]} "]').nth(2)
    spot.scroll_into_view_if_needed()
    box, image = spot.bounding_box(), page.locator(f".{name} img").nth(2).bounding_box()
    assert image["x"] + 0.67 * image["width"] < box["x"] + box["width"] / 2 < image["x"] + image["width"]
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    changed(page, name, before, 2)
    assert (
        page.locator(f".{name} .widget-select select option:checked").inner_text().split()[0]
        == view.sources.ID[row]
    )
    assert numbers(page, name, [SOURCE_HEAD, *source_lines(view, row)])
    screenshot(page, name, "clicked")


def test_a_source_of_the_list_can_be_picked(page, work):
    name, twin = "PatchInspector", PatchInspector(work)
    twin.patch.value = selector(page, name, "patch").input_value()
    before = state(page, name)
    page.locator(f".{name} .widget-select select").select_option(index=3)
    changed(page, name, before, 2)
    assert numbers(page, name, source_lines(twin.view(), twin.source.options[3][1]))
    before = state(page, name)[0]
    selector(page, name, "band").select_option(label="m650")
    page.wait_for_function(f"old => ({PIXELS})('{name}').some(each => !old.includes(each))", arg=list(before))
    expected = patch_sheet(twin.view(), "m650", twin.source.options[3][1])
    assert painted_pixels(page, screen_png(expected)) == page.evaluate(PIXELS, name)[2]
    screenshot(page, name, "source")


def test_a_source_is_found_by_its_id(page, work, catalog):
    """Its images and its spectral energy distribution are drawn, its neighbours told."""
    name, twin, wanted = "SourceInspector", SourceInspector(work), "00204"
    before = state(page, name)
    field = page.locator(f".{name} .widget-text input")
    field.fill(wanted)
    field.press("Enter")
    now = changed(page, name, before, 2)
    twin.find.value = wanted
    assert field.input_value() == "", "it waits for the next"
    moves = [cell for cell in re.findall("<td[^>]*>(.*?)</td>", twin.moves.value)]
    near = neighbours(now[1])
    assert len(near) > 1 and near == sorted(near), "the nearest first"
    assert "neighbour" in now[1] and moves and numbers(page, name, [moves])
    assert f"{catalog.set_index('ID').x_pix_white_fit[wanted]:.3f}" in moves
    screenshot(page, name, "found")


def neighbours(text: str) -> list[float]:
    """Distances in the table of neighbours, from the text of an inspector."""
    table = text[text.index("neighbour") :].splitlines()[1:]
    return [float(line.split("\t")[1]) for line in table if line.count("\t") >= 3]


def test_moving_the_clipping_knob_moves_the_zero_point(page, work):
    """The zero point is the one that the same clipping gives outside of the browser."""
    name, run = "ZeroPointInspector", open_run(work)
    before = state(page, name)
    assert "+0.00 mmag" in before[1]
    knob = page.locator(f'.{name} .widget-slider:has(label:text-is("clip sigma")) .noUi-handle')
    knob.focus()
    for _ in range(15):
        knob.press("ArrowLeft")
    page.wait_for_function(f"text => ({TEXT})('{name}').includes(text)", arg="\t" + zero_point(run, 1.5))
    now = changed(page, name, before, 1)
    screenshot(page, name, "knob")
    page.click(f'.{name} button:text-is("as configured")')
    page.wait_for_function(f"text => ({TEXT})('{name}') === text", arg=before[1])
    again = changed(page, name, now, 1)
    assert set(again[0]) == set(before[0]) and zero_point(run, 1.5) not in again[1]


def zero_point(run, sigma: float) -> str:
    """Zero point and error of the first band with another clipping."""
    band, stars = next(iter(read_stars(run).items()))
    return dict(zp_lines(zero_point_view(band, stars, Knobs(sigma, run.cfg.zp.clip_max_iters), run.cfg.zp)))[
        "zero point"
    ]


def check_width(page, name: str) -> None:
    """All pictures of an inspector are shown and stay within it, and no part of it has to be scrolled
    sideways.
    """
    outer, right, pictures, wide = page.evaluate(
        """name => { const root = document.querySelector(`.${name}`);
        const seen = [...root.querySelectorAll('img')].filter(i => i.naturalWidth && i.offsetParent);
        const ends = seen.map(i => i.getBoundingClientRect().right);
        return [root.getBoundingClientRect().right, Math.max(...ends), ends.length,
            [root, ...root.querySelectorAll('.widget-box')].filter(e => e.scrollWidth > e.clientWidth)
                .map(e => [e.className, e.scrollWidth, e.clientWidth])]; }""",
        name,
    )
    assert pictures >= PICTURES[name.split(".")[-1]], (name, pictures)
    assert right <= outer + 2, (name, outer, right)
    assert not wide, (name, "has to be scrolled sideways", wide)


@pytest.mark.parametrize("width", [760, 1000])
def test_nothing_is_cut_off_on_a_narrow_page(page, width):
    """Pictures stay within the notebook, of which JupyterLab leaves 390 and 630 pixels at these widths."""
    page.set_viewport_size({"width": width, "height": 1400})
    page.wait_for_timeout(500)
    for name in NAMES.values():
        screenshot(page, name, f"{width}")
        check_width(page, name)
    page.set_viewport_size({"width": 1500, "height": 1400})


def open_tab(tabs, title: str) -> str:
    """Click a tab of the widget over all; returns what to call its inspector once all its
    pictures are there.
    """
    name = f"{ALL_IN_ONE} .{TABS[title].__name__}"
    tabs.click(f'.{ALL_IN_ONE} .lm-TabBar-tab:has-text("{title}")')
    tabs.wait_for_function(f"name => ({PIXELS})(name).length >= {PICTURES[TABS[title].__name__]}", arg=name)
    assert tabs.locator(f".{name}").is_visible()
    return name


def test_all_in_one_shows_the_first_tab_and_makes_no_other(tabs, work):
    """Four titles; the ePSFs at once, the others when they are asked for."""
    name, run = open_tab(tabs, "ePSFs"), open_run(work)
    assert [
        each.split() for each in tabs.locator(f".{ALL_IN_ONE} .lm-TabBar-tabLabel").all_inner_texts()
    ] == [title.split() for title in TABS]
    assert (
        tabs.locator(", ".join(f".{ALL_IN_ONE} .{other}" for other in list(NAMES.values())[1:])).count() == 0
    )
    view = read_band_view(run.layout, "m500", read_summary(run.layout)["m500"])
    assert numbers(tabs, name, cell_lines(view.cells["r00_c00"]))
    screenshot(tabs, ALL_IN_ONE, "ePSFs")
    before = state(tabs, name)
    selector(tabs, name, "band").select_option(label="m650")
    changed(tabs, name, before, 4)
    view = read_band_view(run.layout, "m650", read_summary(run.layout)["m650"])
    assert numbers(tabs, name, cell_lines(view.cells["r00_c00"]))


def test_the_tab_of_patches_shows_what_is_chosen(tabs, work):
    name, twin = open_tab(tabs, "patches"), PatchInspector(work)
    assert selector(tabs, name, "patch").input_value() == twin.patch.value
    assert numbers(tabs, name, [SOURCE_HEAD, *source_lines(twin.view(), twin.source.value)])
    screenshot(tabs, ALL_IN_ONE, "patches")
    before = state(tabs, name)
    click(tabs, name, 1, 0.75, 0.25)
    changed(tabs, name, before, 2)
    twin.patch.value = "r00_c00_pr01_pc01"
    assert selector(tabs, name, "patch").input_value() == twin.patch.value
    assert numbers(tabs, name, [SOURCE_HEAD, *source_lines(twin.view(), twin.source.value)])


def test_the_tab_of_sources_finds_one(tabs, work):
    name, twin, wanted = open_tab(tabs, "sources"), SourceInspector(work), "00204"
    assert tabs.locator(f".{name} .widget-select select option:checked").inner_text() == twin.source.value
    assert numbers(tabs, name, [re.findall("<td[^>]*>(.*?)</td>", twin.moves.value)])
    screenshot(tabs, ALL_IN_ONE, "sources")
    before = state(tabs, name)
    field = tabs.locator(f".{name} .widget-text input")
    field.fill(wanted)
    field.press("Enter")
    changed(tabs, name, before, 2)
    twin.find.value = wanted
    assert numbers(tabs, name, [re.findall("<td[^>]*>(.*?)</td>", twin.moves.value)])


def test_the_tab_of_zero_points_follows_its_band(tabs, work):
    name, twin = open_tab(tabs, "zero points"), ZeroPointInspector(work)
    assert numbers(tabs, name, zp_lines(twin.view()))
    screenshot(tabs, ALL_IN_ONE, "zero_points")
    before = state(tabs, name)
    selector(tabs, name, "band").select_option(label="m750")
    changed(tabs, name, before, 1)
    twin.band.value = "m750"
    assert numbers(tabs, name, zp_lines(twin.view()))


def test_a_tab_that_was_opened_keeps_its_choice(tabs):
    """Going to and fro makes nothing anew."""
    for title, chosen in {"zero points": "m750", "ePSFs": "m650"}.items():
        name = open_tab(tabs, title)
        assert selector(tabs, name, "band").locator("option:checked").inner_text() == chosen


def test_no_tab_is_cut_off_on_a_narrow_page(tabs):
    tabs.set_viewport_size({"width": 760, "height": 1400})
    tabs.wait_for_timeout(500)
    for title in TABS:
        name = open_tab(tabs, title)
        screenshot(tabs, ALL_IN_ONE, f"{title.replace(' ', '_')}_760")
        check_width(tabs, name)
    tabs.set_viewport_size({"width": 1500, "height": 1400})
