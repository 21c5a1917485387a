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

from tract7dt.fit.flags import BandFlag, FitFlag
from tract7dt.reports.page import (
    SECTIONS,
    SHOWN,
    calibration_rows,
    page,
    psf_rows,
    report,
    stage_times,
    worst_table,
)
from tract7dt.results.finished import FinishedRun
from tract7dt.results.merge import read_catalog
from tract7dt.results.worst import SURE, chi2_per_pixel, verdict_counts, worst_fluxes
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
        "What the numbers are worth",
        "Worst misfits",
        "Bands",
        "Data, sky and noise",
        "Registration",
        "Zero points",
        "Field",
        "ePSFs",
        "Flags",
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
    bands = Page(SECTIONS["Bands"](FinishedRun(middle_run[0], result.layout))).table("band").set_index("band")
    assert list(bands.index) == ["m500", "m650", "m750"]
    for name, zero in result.zero_points.bands.items():
        assert bands.loc[name, "zero point (mag)"] == f"{zero.zp:.4f} ± {zero.zp_err:.4f}"
    assert (bands["chi2 per pixel"].astype(float) > 0.8).all()


BANDS = ("m500", "m650", "m750")


def test_the_worst_misfits_come_first(middle_run, read):
    """Counted here from the catalog itself: by the share of the flux where that is beyond noise, each source
    in its worst band.
    """
    catalog = read_catalog(middle_run[1].layout.final_catalog)
    shown = read.table("ID")
    assert len(shown) == SHOWN and shown["ID"].is_unique
    ratio = pd.DataFrame({b: catalog[f"FLUX_{b}_fit"] / catalog[f"FLUXERR_{b}_fit"] for b in BANDS}).abs()
    misfit = pd.DataFrame({b: catalog[f"misfit_{b}"] for b in BANDS}).astype(float)
    sure = misfit.clip(upper=1).where(misfit * ratio > SURE, 0.0).max(axis=1).nlargest(SHOWN)
    sure = sure[sure > 0]
    top = catalog.set_index("ID").loc[shown["ID"][: len(sure)]]
    assert set(top.index) == set(catalog["ID"][sure.index])
    for row in shown.itertuples():
        own = catalog[catalog["ID"] == row.ID].iloc[0]
        assert float(row.misfit) == pytest.approx(own[f"misfit_{row.band}"], rel=1e-2, abs=1e-3)
        assert row.reliable == str(bool(own[f"reliable_{row.band}"]))


def test_a_spoilt_source_becomes_the_worst():
    """Of a catalog of version 1.0.0, which knows chi-square only."""
    table = pd.DataFrame(
        {
            "ID": list("abc"),
            "chi2_g_fit": [90.0, 110.0, 5000.0],
            "npix_g_fit": [100, 100, 100],
            "stype_fit": "star",
            "x_pix_white": 1.0,
            "y_pix_white": 2.0,
            "fit_flags": 0,
        }
    )
    worst = worst_fluxes(table, ["g"])
    assert list(worst["ID"]) == ["c", "b", "a"]
    assert list(worst_table(worst)) == ["ID", "band", "model", "S/N", "chi2 per pixel", "x", "y", "reason"]


def judged(**columns) -> pd.DataFrame:
    """A catalog of four measured sources in two bands, all well but for what is given."""
    table = {"ID": list("abcd"), "stype_fit": "star", "fit_flags": 0, "x_pix_white": 1.0, "y_pix_white": 2.0}
    for band in "gr":
        table |= {
            f"FLUX_{band}_fit": 100.0,
            f"FLUXERR_{band}_fit": 1.0,
            f"misfit_{band}": 0.01,
            f"apflux_{band}": 100.0,
            f"apflux_resid_{band}": 0.0,
            f"flags_{band}": 0,
            f"reliable_{band}": True,
            f"psf_source_{band}": "band",
        }
    return pd.DataFrame(table, index=range(4)).assign(**columns)


def test_a_source_is_shown_in_the_band_that_is_worst_with_the_reason():
    bits = int(BandFlag.MISFIT | BandFlag.LIGHT_LEFT)
    table = judged(
        misfit_g=[0.01, 0.35, 0.02, 0.01],
        misfit_r=[0.01, 0.40, 0.90, 0.01],
        apflux_resid_r=[0, 25, 0, 0],
        flags_r=[0, bits, int(BandFlag.MISFIT), 0],
        fit_flags=[0, 0, int(FitFlag.RUNAWAY), 0],
    )
    worst = worst_fluxes(table, number=2)
    assert worst[["ID", "band"]].to_numpy().tolist() == [["c", "r"], ["b", "r"]]
    assert list(worst["reason"]) == ["misfit, runaway", "misfit, light left"]
    assert list(worst["left"]) == [0, 0.25]


def test_a_misfit_that_is_noise_does_not_come_first():
    """The faint source's misfit is seven times its flux, and yet only 7 errors of it."""
    table = judged(misfit_g=[7.0, 0.2, 0.01, 0.01], FLUX_g_fit=[1.0, 100, 100, 100])
    assert list(worst_fluxes(table)["ID"])[:1] == ["b"]


def test_what_a_flux_worth_nothing_costs_is_its_brightness():
    """Above 1 the misfit says no more: the brighter of two that are worth nothing comes first."""
    table = judged(misfit_g=[3.0, 2.0, 0.01, 0.01], FLUX_g_fit=[100.0, 900, 100, 100])
    assert list(worst_fluxes(table)["ID"])[:2] == ["b", "a"]


def test_bands_fitted_alone_have_reasons_of_their_own(alone_run):
    catalog = read_catalog(alone_run[1].layout.final_catalog).copy()
    catalog["fit_flags_m650"] = int(FitFlag.BLENDED)
    for band, misfit in zip(BANDS, (0.0, 0.9, 0.0)):
        catalog[f"misfit_{band}"] = misfit
    worst = worst_fluxes(catalog, number=5)
    assert set(worst["band"]) == {"m650"} and worst["reason"].str.contains("blended").all()
    text = Page(SECTIONS["Worst misfits"](FinishedRun(alone_run[0], alone_run[1].layout)))
    assert len(text.table("ID")) == SHOWN and len(text.pictures) == 1


def test_verdicts_are_counted(middle_run, read):
    catalog = read_catalog(middle_run[1].layout.final_catalog)
    measured = catalog[catalog["stype_fit"].ne("")]
    told = read.table("band").set_index("band")
    for band in BANDS:
        assert int(told.loc[band, "measured"]) == len(measured)
        assert int(told.loc[band, "reliable"]) == measured[f"reliable_{band}"].sum()
    counts = verdict_counts(
        judged(flags_g=[int(BandFlag.MISFIT), 0, int(BandFlag.MISFIT | BandFlag.MASKED), 0])
    )
    assert counts.loc["g", ["misfit", "masked", "light left"]].tolist() == [2, 1, 0]


def test_what_is_known_of_psfs_and_depths_is_what_products_say(middle_run):
    run = FinishedRun(middle_run[0], middle_run[1].layout)
    rows = psf_rows(run)
    for cell in run.cells:
        expected = 100 * cell["band_model"]["profile_error"]
        assert rows.loc[cell["band"], "a pixel of a star off by (%)"] == pytest.approx(expected)
        assert 100 * cell["eps_pred"] <= rows.loc[cell["band"], "in the worst cell (%)"] * (1 + 1e-9)
    depths = calibration_rows(run.catalog)
    assert set(depths["zero point from"]) == {"gaia"}
    for band in BANDS:
        middle = run.catalog[f"DEPTH5_{band}"].median()
        assert float(depths.loc[band, "depth at 5 sigma (mag)"]) == pytest.approx(middle, abs=0.006)


def test_catalogs_of_earlier_versions_have_a_page(middle_run):
    """Without verdicts, misfits, calibrated fluxes and depths: sentences and chi-squares in their place."""
    cfg, result = middle_run
    run = FinishedRun(cfg, result.layout)
    new = ("misfit_", "apflux_", "flags_", "reliable_", "FNU", "DEPTH5_", "MAGLIM3_", "zp_source_")
    vars(run)["catalog"] = run.catalog.drop(columns=[c for c in run.catalog if c.startswith(new)])
    vars(run)["cells"] = [
        {key: value for key, value in cell.items() if key != "band_model"} for cell in run.cells
    ]
    read = Page(page(run))
    assert "made by an earlier version" in read.text and "does not tell misfits" in read.text
    chi2 = pd.DataFrame({b: chi2_per_pixel(run.catalog, b) for b in BANDS}).max(axis=1)
    assert list(read.table("ID")["ID"]) == list(run.catalog["ID"][chi2.nlargest(SHOWN).index])


def test_psf_models_of_earlier_versions_cost_the_cut_outs_only(middle_run):
    cfg, result = middle_run
    path = result.layout.psf_model("m650")
    written = path.read_bytes()
    try:
        path.write_bytes(written[:2880])
        read = Page(SECTIONS["Worst misfits"](FinishedRun(cfg, result.layout)))
    finally:
        path.write_bytes(written)
    assert len(read.table("ID")) == SHOWN and "No cut-outs" in read.text and str(path) in read.text


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
        ("patches_csv", "Worst misfits", "No cut-outs: the list of patches is missing"),
        ("epsf_summary", "ePSFs", "No ePSFs"),
        ("final_catalog", "Sources", "There is no final catalog"),
        ("final_catalog", "Flags", "No final catalog"),
        ("final_catalog", "Worst misfits", "No final catalog"),
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
        + SECTIONS["Worst misfits"](FinishedRun(gone, result.layout))
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
