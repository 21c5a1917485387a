"""The page about a run: whole, self-contained, true to the products, and still there when products are
missing.
"""

import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tract7dt.reports.page import SECTIONS, chi2_per_pixel, page, report, stage_times, worst_sources
from tract7dt.results.finished import FinishedRun
from tract7dt.results.merge import read_catalog
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("middle_run")


class Page(HTMLParser):
    """What a reader finds: headings, text, tables as lists of rows, pictures; complains about tags that do
    not match.
    """

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, source):
        super().__init__()
        self.open, self.headings, self.tables, self.pictures, self.tags, self.words = (
            [],
            [],
            [],
            [],
            set(),
            [],
        )
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "img":
            self.pictures.append(dict(attrs))
        self.attributes = getattr(self, "attributes", []) + [
            value for name, value in attrs if name in ("src", "href")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    def table(self, first_heading):
        "The table whose first column is called so, as a frame."
        found = next(t for t in self.tables if t[0][0] == first_heading)
        return pd.DataFrame(found[1:], columns=found[0])


@pytest.fixture(scope="module")
def written(middle_run):
    return report(middle_run[0]).path


@pytest.fixture(scope="module")
def read(written):
    return Page(written.read_text(encoding="utf-8"))


def test_one_file_that_needs_nothing_else(written, read):
    assert written.stat().st_size < 10e6
    assert not read.tags & {"script", "link", "iframe", "object"}
    assert all(value.startswith(("data:image/", "#")) for value in read.attributes)
    assert not re.search(r"https?://|@import|url\(", written.read_text(encoding="utf-8"))


def test_every_section_is_there(read):
    assert read.headings == [
        "Sources",
        "Failures",
        "Bands",
        "Data, sky and noise",
        "Zero points",
        "Field",
        "ePSFs",
        "Flags",
        "Worst residuals",
        "Times",
        "Settings",
        "Versions and inputs",
    ]


def test_pictures_are_pictures(read):
    assert len(read.pictures) >= 3 + 2, "an ePSF sheet for each band, zero points, worst residuals"
    for picture in read.pictures:
        assert picture["alt"]
        with Image.open(BytesIO(b64decode(picture["src"].split(",")[1]))) as image:
            assert min(image.size) > 100 and max(image.size) < 1500
            assert np.ptp(np.asarray(image.convert("L"))) > 100, "not blank"


def test_counts_are_those_of_the_catalog(middle_run, read):
    catalog = read_catalog(middle_run[1].layout.final_catalog)
    counts = read.table("what").set_index("what")["number"].astype(int)
    assert counts["sources"] == len(catalog)
    assert counts["reliable"] == catalog["fit_is_reliable"].sum()
    assert counts["not measured: crop"] == (catalog["excluded_reason"] == "crop").sum()
    flags = read.table("flag").set_index("flag")
    assert int(flags.loc["excluded", "sources"]) == catalog["excluded_any"].sum()
    assert len(flags) >= 15


def test_bands_and_zero_points(middle_run, read):
    _, result = middle_run
    bands = read.table("band").set_index("band")
    assert list(bands.index) == ["m500", "m650", "m750"]
    for name, zero in result.zero_points.bands.items():
        assert bands.loc[name, "zero point (mag)"] == f"{zero.zp:.4f} ± {zero.zp_err:.4f}"
    assert (bands["chi2 per pixel"].astype(float) > 0.8).all()


def test_the_worst_sources_are_the_worst(middle_run, read):
    catalog = read_catalog(middle_run[1].layout.final_catalog)
    chi2 = pd.DataFrame({b: chi2_per_pixel(catalog, b) for b in ("m500", "m650", "m750")}).max(axis=1)
    shown = read.table("ID")
    assert list(shown["ID"]) == list(catalog["ID"][chi2.nlargest(12).index])
    assert float(shown["chi2 per pixel"][0]) == pytest.approx(chi2.max(), rel=1e-3)


def test_a_spoilt_source_becomes_the_worst():
    table = pd.DataFrame(
        {
            "ID": list("abc"),
            "chi2_g_fit": [90.0, 110.0, 5000.0],
            "npix_g_fit": [100, 100, 100],
            "stype_fit": "star",
            "x_pix_white": 1.0,
            "y_pix_white": 2.0,
            "fit_quality_issues": "",
        }
    )
    assert list(worst_sources(table, ["g"])["ID"]) == ["c", "b", "a"]


def test_times(read):
    assert {"load", "ePSF", "fit", "merge"} <= set(read.table("stage")["stage"])


def test_times_are_the_last_ones():
    log = (
        "... | fit: done in 9.1 s\n... | fit: started\n... | fit: done in 2 min 3 s\n... | ePSF: stopped "
        "after 3 s\n"
    )
    assert stage_times(log).to_dict("records") == [{"stage": "fit", "time": "2 min 3 s"}]


def test_settings_and_versions(read):
    changed = read.text[read.text.index("crop:") :]
    assert "margin: 250" in changed
    assert {"products", "this page", "numpy", "photutils"} <= set(read.table("program")["program"])
    assert any(path.endswith("m500.fits.fz") for path in read.table("input")["input"])


def test_text_is_escaped(middle_config):
    cfg = middle_config(**{"inputs.tile_name": "<img src=x onerror=alert(1)> & 'co'"})
    source = page(FinishedRun(cfg, Layout.of(cfg.outputs)))
    assert "<img src=x" not in source and "&lt;img src=x onerror=alert(1)&gt; &amp;" in source
    Page(source)


def test_an_empty_work_directory_gives_sentences(middle_config):
    text = Page(report(middle_config()).path.read_text(encoding="utf-8")).text
    for sentence in (
        "There is no final catalog",
        "No patch was fitted yet",
        "No zero points",
        "No ePSFs",
        "does not exist",
        "no manifest",
    ):
        assert sentence in text


def test_a_catalog_that_was_changed_is_named(middle_run):
    cfg, result = middle_run
    path = result.layout.final_catalog
    written = path.read_bytes()

    def summary():
        return Page(SECTIONS["Sources"](FinishedRun(cfg, result.layout))).text

    assert "was changed" not in summary()
    try:
        path.write_bytes(written + written.splitlines(keepends=True)[-1])
        assert f"{path.name} was changed after the run had written it" in summary()
    finally:
        path.write_bytes(written)


@pytest.mark.parametrize(
    "lost, section, sentence",
    [
        ("run_summary", "Failures", "No patch was fitted yet"),
        ("zp_summary", "Zero points", "No zero points"),
        ("zp_per_object", "Zero points", "table of the calibration stars is missing"),
        ("patches_csv", "Worst residuals", "No cut-outs: the list of patches is missing"),
        ("epsf_summary", "ePSFs", "No ePSFs"),
        ("final_catalog", "Sources", "There is no final catalog"),
        ("final_catalog", "Flags", "No final catalog"),
        ("final_catalog", "Worst residuals", "No final catalog"),
        ("manifest", "Versions and inputs", "There is no manifest"),
        ("bright_mask_overlay", "Field", "white_bright_mask_overlay.png does not exist"),
    ],
)
def test_each_product_may_be_missing(middle_run, lost, section, sentence):
    cfg, result = middle_run
    path = getattr(result.layout, lost)
    hidden = path.rename(f"{path}.hidden")
    try:
        assert sentence in Page(SECTIONS[section](FinishedRun(cfg, result.layout))).text
    finally:
        hidden.rename(path)


def test_images_may_have_been_moved(middle_run):
    cfg, result = middle_run
    gone = cfg.model_copy(
        update={
            "inputs": cfg.inputs.model_copy(
                update={"image_list_file": cfg.inputs.image_list_file.with_name("gone.txt")}
            )
        }
    )
    read = Page(
        SECTIONS["Bands"](FinishedRun(gone, result.layout))
        + SECTIONS["Worst residuals"](FinishedRun(gone, result.layout))
    )
    assert "gone.txt" in read.text and "No cut-outs" in read.text and read.table("band").shape[0] == 3


def test_failed_patches_are_named(middle_run):
    cfg, result = middle_run
    path = result.layout.run_summary
    before = path.read_text()
    path.write_text(before.replace(",ok,0,", ",fail,1,", 1))
    try:
        assert (
            "patch r00_c00_pr00_pc00 failed"
            in Page(SECTIONS["Failures"](FinishedRun(cfg, result.layout))).text
        )
    finally:
        path.write_text(before)


def test_the_command_says_where(middle_run, written):
    made = report(middle_run[0])
    assert made.ok and str(written) in made.facts()[0]
