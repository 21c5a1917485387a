"""Inspectors in a real browser: JupyterLab serves a notebook, Chromium turns the controls, pictures and numbers must follow.

Skipped where Chromium, playwright or JupyterLab are missing. With TRACT7DT_SCREENSHOTS set to a folder, screenshots are left there.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LAB = Path(sys.executable).with_name("jupyter-lab")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (it is in the dev requirements)")
pytestmark = [
    pytest.mark.xdist_group("sample_run"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
    pytest.mark.skipif(not LAB.exists(), reason="JupyterLab is not installed (it is in the dev requirements)"),
]
NAMES = {"epsf": "EPSFInspector", "patch": "PatchInspector", "source": "SourceInspector", "zp": "ZeroPointInspector"}
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync"]
PATIENCE = 180_000


def notebook(work: Path) -> dict:
    """A notebook with a cell for each inspector."""
    sources = [f"from tract7dt.widgets import {', '.join(NAMES.values())}"]
    sources += [f"{name}({str(work)!r})" for name in NAMES.values()]
    cells = [{"cell_type": "code", "id": f"c{k}", "metadata": {}, "execution_count": None, "outputs": [], "source": source} for k, source in enumerate(sources)]
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
def lab(sample_run, tmp_path_factory):
    """JupyterLab with the notebook, in folders of its own; yields its address."""
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "JUPYTER_CONFIG_DIR" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    (folder / "view.ipynb").write_text(json.dumps(notebook(sample_run / "work")))
    homes = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    port = free_port()
    command = [LAB, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while not answers(f"http://127.0.0.1:{port}/api") and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def page(lab):
    """The notebook in Chromium, all cells run, all inspectors shown."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{lab}/lab/tree/view.ipynb?reset")
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
        for name in NAMES.values():
            page.wait_for_selector(f".{name} img", state="attached")
        yield page
        browser.close()


PIXELS = """name => [...document.querySelectorAll(`.${name} img`)].filter(i => i.naturalWidth).map(i => {
    const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
    c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL(); })"""
TEXT = "name => [...document.querySelectorAll(`.${name} .widget-html-content`)].map(e => e.innerText).join('\\n')"


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
    raise AssertionError(f"{name}: {len(set(now[0]) - set(before[0]))} of {pictures} pictures changed, texts changed: {now[1] != before[1]}")


def screenshot(page, name: str, what: str) -> None:
    folder = os.environ.get("TRACT7DT_SCREENSHOTS")
    if folder:
        page.locator(f".{name}").screenshot(path=Path(folder) / f"{name}_{what}.png")


def selector(page, name: str, label: str):
    """The dropdown of an inspector with a label."""
    return page.locator(f'.{name} .widget-dropdown:has(label:text-is("{label}")) select')


def test_another_band_shows_another_epsf(page):
    name = "EPSFInspector"
    before = state(page, name)
    selector(page, name, "band").select_option(label="m750")
    changed(page, name, before, 4)
    screenshot(page, name, "band")


def test_a_click_on_a_stamp_chooses_its_cell(page):
    name = "EPSFInspector"
    before, cell = state(page, name), selector(page, name, "cell")
    assert cell.input_value().startswith("r00_c00")
    page.locator(f".{name} img").first.scroll_into_view_if_needed()
    picture = page.locator(f".{name} img").first.bounding_box()
    page.mouse.click(picture["x"] + 0.75 * picture["width"], picture["y"] + 0.25 * picture["height"])
    changed(page, name, before, 3)
    assert cell.input_value().startswith("r01_c01"), "the upper right cell of four"
    screenshot(page, name, "cell")


def test_a_click_on_the_map_fits_that_patch_and_a_source_can_be_picked(page):
    name = "PatchInspector"
    before = state(page, name)
    chart = page.locator(f".{name} img").nth(1)
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    fitted = changed(page, name, before, 2)
    assert selector(page, name, "patch").input_value() == "r00_c00_pr01_pc01"
    page.locator(f".{name} select[size], .{name} .widget-select select").last.select_option(index=3)
    changed(page, name, fitted, 2)
    screenshot(page, name, "source")


def test_a_source_is_found_by_its_id(page):
    name = "SourceInspector"
    before = state(page, name)
    field = page.locator(f".{name} .widget-text input")
    field.fill("00200")
    field.press("Enter")
    now = changed(page, name, before, 2)
    assert "neighbour" in now[1]
    screenshot(page, name, "found")


def test_moving_the_clipping_knob_moves_the_zero_point(page):
    name = "ZeroPointInspector"
    before = state(page, name)
    assert "+0.00 mmag" in before[1]
    knob = page.locator(f'.{name} .widget-slider:has(label:text-is("clip sigma")) .noUi-handle')
    knob.focus()
    for _ in range(15):
        knob.press("ArrowLeft")
    now = changed(page, name, before, 1)
    screenshot(page, name, "knob")
    page.click(f'.{name} button:text-is("as configured")')
    page.wait_for_function(f"text => ({TEXT})('{name}') === text", arg=before[1])
    assert state(page, name)[1] != now[1]
