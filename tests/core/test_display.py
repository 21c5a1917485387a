"""Objects show themselves in a notebook: short, light, escaped, and whatever happens to their pictures."""

import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import tract7dt.plots.thumbnails as small
from tract7dt.config.schema import Config
from tract7dt.core import logs
from tract7dt.core.display import MOST_BYTES, card, light, picture_html, png_of, table_html
from tract7dt.core.errors import UserError
from tract7dt.patches.fit import fit_patch, fit_patch_at
from tract7dt.patches.payload import read_payload
from tract7dt.patches.problem import load_psfs
from tract7dt.plots.sheet import Marks, Panel, Sheet

pytestmark = pytest.mark.xdist_group("middle_run")
OBJECTS = ("cfg", "section", "tile", "epsfs", "cell", "patches", "fit", "zero_points", "fits", "result")


class Balance(HTMLParser):
    """Counts opened and closed elements; nesting must be proper."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag == "img" or self.open.pop() == tag


def checked(page: str) -> set[str]:
    """Elements of a page, which is well-formed."""
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def pictures(page: str) -> list[bytes]:
    return [b64decode(data) for data in re.findall(r"data:image/png;base64,([^']+)'", page)]


@pytest.fixture(scope="module")
def held(middle_run):
    """What one holds in a notebook after a run of the middle of the sample tile."""
    cfg, result = middle_run
    source = result.catalog.loc[result.catalog["fit_is_reliable"], "ID"].iloc[0]
    return {
        "cfg": cfg,
        "section": cfg.patch_run,
        "tile": result.tile,
        "epsfs": result.epsf,
        "cell": result.epsf.cells[0],
        "patches": result.patches,
        "fit": fit_patch_at(result.tile, result.epsf, cfg, source),
        "zero_points": result.zero_points,
        "fits": result.fits,
        "result": result,
    }


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_shows_a_light_card(name, held):
    page = held[name]._repr_html_()
    assert "table" in checked(page)
    assert len(page) < 100_000
    for png in pictures(page):
        assert len(png) <= MOST_BYTES
        assert max(Image.open(BytesIO(png)).size) < 700
    assert len(pictures(page)) == (0 if name in ("cfg", "section", "fits") else 1)


def crosses(png: bytes) -> int:
    """Red pixels of a picture: those of the marks of what is left out."""
    red, green, blue = np.moveaxis(np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int), 2, 0)
    return int((red > np.maximum(green, blue) + 60).sum())


def marked_sheet(side: int) -> Sheet:
    """Noise, which is heavy, and one red cross."""
    noise = np.random.default_rng(0).integers(0, 64, (side, side)).astype(np.uint8)
    return Sheet(
        ((Panel(noise, marks=(Marks("cross", "excluded", np.array([side / 2]), np.array([side / 2])),)),),),
        inches=8.0,
    )


def marked_figure() -> Figure:
    """Grey shades in all corners of a figure, and one red cross."""
    figure = Figure(figsize=(6, 4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.add.outer(np.arange(300), np.arange(300)), cmap="viridis")
    axes.plot(150, 150, "x", color="#e03030")
    return figure


@pytest.mark.parametrize(
    "picture, most",
    [
        (marked_sheet(500), MOST_BYTES),
        (marked_sheet(100), MOST_BYTES),
        (marked_figure(), MOST_BYTES),
        (marked_figure(), 4000),
    ],
)
def test_a_lone_red_cross_survives(picture, most):
    """A cross is a handful of pixels among a quarter of a million: no count of colours may drop it.

    A shrunk one has fewer.
    """
    png = png_of(picture)
    kept = light(png, most)
    scale = Image.open(BytesIO(kept)).width / Image.open(BytesIO(png)).width
    assert len(kept) <= most
    assert crosses(kept) > 0.5 * scale**2 * crosses(png) > 0


def test_saturated_stars_have_a_cross_on_the_card_of_a_tile(held):
    tile = held["tile"]
    assert tile.catalog["excluded_any"].any()
    assert crosses(pictures(tile._repr_html_())[0]) >= 8


@pytest.mark.parametrize(
    "name", [name for name in OBJECTS if name not in ("section", "result", "zero_points")]
)
def test_an_object_prints_in_a_line(name, held):
    text = repr(held[name])
    assert len(text) < 400 and "\n" not in text and "array(" not in text


@pytest.mark.parametrize(
    "name, function",
    [
        ("tile", "field_picture"),
        ("epsfs", "bands_picture"),
        ("cell", "stamp_picture"),
        ("fit", "fit_picture"),
        ("patches", "patches_picture"),
        ("zero_points", "zero_points_picture"),
        ("result", "field_picture"),
    ],
)
def test_a_failing_picture_leaves_the_table(name, function, held, monkeypatch):
    def broken(*_):
        raise ValueError("<no> ink")

    monkeypatch.setattr(small, function, broken)
    page = held[name]._repr_html_()
    assert (
        "no picture (ValueError: &lt;no&gt; ink)" in page and "table" in checked(page) and not pictures(page)
    )


def test_texts_of_users_are_escaped(held):
    tile = held["tile"]
    evil = tile.catalog.assign(excluded_reason="<script>")
    page = type(tile)(**{**vars(tile), "catalog": evil})._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<script>" not in table_html([["<script>"]], ["<script>"]) + card(
        "<script>", ["<script>"], steps=["<script>"]
    )
    assert "<script>" not in picture_html(lambda: {}["<script>"])


def test_the_card_of_a_configuration_lists_what_was_changed(held):
    cfg = held["cfg"]
    names = {name for name, *_ in cfg.changes()}
    assert "crop.margin" in names and "patch_run.engine" not in names
    assert not any(name.startswith("outputs.") and name != "outputs.work_dir" for name in names), (
        "products in their usual places"
    )
    assert "crop.margin" in cfg._repr_html_()
    assert Config().changes() == []


def test_plots_are_figures(held):
    band = held["tile"].band_names[0]
    drawn = [
        held["tile"].plot(),
        held["epsfs"].plot(band),
        held["cell"].plot(),
        held["zero_points"].plot(band),
        held["fit"].plot(),
        held["fit"].plot(band),
        held["fit"].plot_source(held["fit"].measured["ID"].iloc[0]),
    ]
    assert all(isinstance(figure, Figure) and figure.axes for figure in drawn)
    for thing in ("epsfs", "zero_points", "fit"):
        with pytest.raises(UserError, match="m000"):
            held[thing].plot("m000")


def test_a_fit_in_memory_is_the_fit_from_files(held):
    """One code path: what is tried in a notebook is what a run would do."""
    cfg, fit, layout = held["cfg"], held["fit"], held["result"].layout
    payload = read_payload(layout.payload(fit.payload.patch.tag))
    stored = fit_patch(payload, load_psfs(payload, layout, cfg), cfg)
    for band in fit.psfs:
        np.testing.assert_allclose(
            fit.measured[f"FLUX_{band}_fit"], stored.measured[f"FLUX_{band}_fit"], rtol=1e-6
        )
    assert (
        fit_patch_at(held["tile"], held["epsfs"], cfg, fit.payload.patch.tag).payload.patch
        == fit.payload.patch
    )


@pytest.mark.parametrize(
    "name, text",
    [("nobody", "neither a source of the catalog nor a patch"), ("r09_c09_pr00_pc00", "neither a source")],
)
def test_a_fit_of_nobody_is_refused(name, text, held):
    with pytest.raises(UserError, match=text):
        fit_patch_at(held["tile"], held["epsfs"], held["cfg"], name)


class Area:
    """The output of a cell, as a list of what it showed."""

    def __init__(self):
        self.shown = []

    def update(self, thing):
        self.shown.append(thing.data)


def test_progress_in_a_notebook_is_a_bar_and_then_a_line(monkeypatch):
    area = Area()
    monkeypatch.setattr(logs, "kernel", lambda: object())
    monkeypatch.setattr(logs, "output_area", lambda: area)
    with logs.progress(name="<fit>", total=3, unit="patches") as bar:
        bar.update(1)
        bar.refresh()
        assert (
            "<progress value='1' max='3'>" in area.shown[-1] and "&lt;fit&gt;: 1/3 patches" in area.shown[-1]
        )
        bar.update(2)
    assert "<progress" not in area.shown[-1] and "&lt;fit&gt;: 3/3 patches in" in area.shown[-1]
    for html in area.shown:
        checked(html.replace("<progress>", "<progress></progress>"))


def test_without_a_kernel_there_is_no_output_area(monkeypatch, caplog):
    monkeypatch.setattr(logs, "output_area", lambda: pytest.fail("no notebook here"))
    with caplog.at_level("INFO", logger="tract7dt.progress"):
        list(logs.progress(range(3), name="fit", unit="patches", every=0.0))
    assert "fit: 3/3 patches in" in caplog.messages[-1]
