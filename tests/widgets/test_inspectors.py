"""Inspectors without a browser: what is chosen is what is shown, it is true, and missing products are told in
a sentence.
"""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tract7dt.config.load import load_config
from tract7dt.config.schema import Config
from tract7dt.core.errors import UserError
from tract7dt.epsf.model import BandPSF
from tract7dt.fit.flags import BandFlag
from tract7dt.inputs.gaia_table import load_gaia
from tract7dt.pipeline.batch import TileRow
from tract7dt.plots.sheet import plan_of
from tract7dt.results import zero_points as zp
from tract7dt.results.finished import files_by_band, open_band, open_run
from tract7dt.results.merge import read_catalog
from tract7dt.widgets import base
from tract7dt.widgets.base import full_table_html
from tract7dt.widgets.epsf import EPSFInspector, fits_sheet, listed
from tract7dt.widgets.patch import (
    SOURCE_HEAD,
    PatchInspector,
    patch_sheet,
    read_patch,
    source_lines,
    source_options,
    spots_of,
)
from tract7dt.widgets.run import RunInspector
from tract7dt.widgets.source import (
    MOST_LISTED,
    SourceInspector,
    is_doubted,
    start_lines,
    wavelengths,
    worth_lines,
)
from tract7dt.widgets.zero_points import ZeroPointInspector
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("inspectors")
BANDS = ["m500", "m650", "m750"]
SAMPLE = Path(__file__).resolve().parents[2] / "sample_data"
INSPECTORS = (EPSFInspector, PatchInspector, SourceInspector, ZeroPointInspector)
TROUBLE = "color:#b3202c"
PICTURES = {
    EPSFInspector: ("stamp", "growth", "map", "fits"),
    PatchInspector: ("triple", "strip"),
    SourceInspector: ("images", "sed"),
    ZeroPointInspector: ("picture",),
}


@pytest.fixture(scope="module")
def work(cells_run):
    """The work directory of a finished batch run: four cells of four patches, three bands;
    not to be changed.
    """
    return Path(cells_run[0].outputs.work_dir)


@pytest.fixture(scope="module")
def catalog(work):
    return read_catalog(work / "output_catalog.csv")


@pytest.fixture
def copy(work, tmp_path):
    """A copy of the work directory to break."""
    skip = shutil.ignore_patterns("*.png", "*.log")
    return shutil.copytree(work, tmp_path / "moved", ignore=skip)


def rows_of(html: str) -> list[list[str]]:
    """Cells of a table, row by row, without its head."""
    return [
        re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", html) if "<td" in row
    ]


def shown(inspector) -> list[bytes]:
    """All pictures of an inspector."""
    return [getattr(inspector, name).value for name in PICTURES[type(inspector)]]


@pytest.mark.parametrize("inspector", INSPECTORS)
def test_a_work_directory_a_file_and_a_result_open_the_same(inspector, work):
    """The configuration of a work directory comes from its manifest, and leads to the same pictures."""
    pictures = shown(inspector(work))
    assert all(pictures)
    assert shown(inspector(next(work.glob("config_used_*.yaml")))) == pictures
    assert shown(inspector(SimpleNamespace(layout=SimpleNamespace(work_dir=work)))) == pictures


@pytest.mark.parametrize("inspector", INSPECTORS)
def test_a_work_directory_may_be_moved(inspector, work, copy):
    moved = inspector(copy)
    assert TROUBLE not in moved.message.value
    assert moved.run.layout.epsf_dir == copy.resolve() / "EPSFs"
    assert shown(moved) == shown(inspector(work))


def test_a_band_of_the_epsf_inspector_changes_everything(work):
    inspector = EPSFInspector(work)
    pictures, numbers = shown(inspector), inspector.numbers.value
    inspector.band.value = "m750"
    assert all(a != b for a, b in zip(pictures, shown(inspector)))
    assert inspector.numbers.value != numbers
    inspector.band.value = "m500"
    assert shown(inspector) == pictures and inspector.numbers.value == numbers


def test_clicking_a_cell_chooses_it(work):
    inspector = EPSFInspector(work)
    before = shown(inspector)
    inspector.grid.buttons[1, 0].click()
    assert inspector.cell.value == "r01_c00"
    assert all(a != b for a, b in zip(before, shown(inspector)))
    assert inspector.grid.chosen == (1, 0)


def test_the_stretch_changes_stamps_only(work):
    inspector = EPSFInspector(work)
    stamp, *others = shown(inspector)
    inspector.stretch.value = "linear"
    assert inspector.stamp.value != stamp and shown(inspector)[1:] == others


def test_every_rejected_star_has_its_reason(work):
    """What the table says is what the ePSF stage wrote into the model's file."""
    inspector = EPSFInspector(work)
    for tag in ("r00_c00", "r01_c01"):
        inspector.cell.value = tag
        stars = BandPSF.load(inspector.run.layout.psf_model("m500")).stars
        rejected = stars[(stars.cell == tag) & ~stars.accepted]
        told = Counter(row[3].replace(" ", "_") for row in rows_of(inspector.reasons.value))
        assert told == rejected.reason.value_counts().to_dict()
        assert (
            inspector.stars["m500", tag].table["accepted"].sum()
            == ((stars.cell == tag) & stars.accepted).sum()
        )


def test_a_fitted_star_leaves_noise(work):
    """The inspector's own fits: residuals of good stars have unit width, and a wrong PSF shows."""
    inspector = EPSFInspector(work)
    inspector.band.value = "m650"
    stars = inspector.stars["m650", "r00_c00"]
    middle = np.s_[:, 11:20, 11:20]
    chi = ((stars.data - stars.model) / stars.noise)[middle]
    assert 0.8 < np.sqrt(np.median(np.mean(chi**2, axis=(1, 2)))) < 1.3
    assert fits_sheet(stars) is not None
    assert listed(inspector.views["m650"], "r00_c00")["accepted"].is_monotonic_decreasing


def test_the_refit_of_a_patch_is_the_catalog(work):
    run = open_run(work)
    assert read_patch(run, "r00_c01_pr01_pc00").note == ""


def test_a_fit_with_other_settings_is_told(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["patch_run"]["weak_priors"] = False
    path.write_text(json.dumps(manifest))
    notes = {tag: read_patch(open_run(copy), tag).note for tag in ("r00_c00_pr00_pc00", "r00_c01_pr01_pc00")}
    assert any("differs from this fit by up to" in note for note in notes.values()), notes


def test_patch_band_and_source_change_the_pictures(work):
    inspector = PatchInspector(work)
    states = [shown(inspector) + [inspector.details.value]]
    for control, value in ((inspector.band, "m750"), (inspector.source, inspector.source.options[3][1])):
        control.value = value
        states.append(shown(inspector) + [inspector.details.value])
    assert states[0][0] != states[1][0] and states[0][1:] == states[1][1:]
    assert all(a != b for a, b in zip(states[1], states[2]))


def test_the_panels_of_a_band_are_of_that_band(work):
    inspector = PatchInspector(work)
    view = inspector.view()
    assert [each.name for each in view.paint.views] == BANDS
    for band, inked in zip(BANDS, view.paint.views):
        panels = patch_sheet(view, band).rows[0]
        assert all(
            panel.pixels is pixels
            for panel, pixels in zip(panels, (inked.data, inked.model, inked.residual), strict=True)
        )
        inspector.band.value = band
        assert inspector.triple.value == base.screen_png(patch_sheet(view, band, inspector.source.value))


def test_clicking_maps_walks_through_cells_and_patches(work):
    inspector = PatchInspector(work)
    inspector.frame.buttons[1, 1].click()
    assert inspector.patch.value == "r01_c01_pr00_pc00"
    inspector.map.buttons[1, 0].click()
    assert inspector.patch.value == "r01_c01_pr01_pc00"
    assert inspector.view().paint.patch.tag == "r01_c01_pr01_pc00"


def test_clicking_a_source_chooses_it(work):
    """In each of the three panels, wherever the source is; those of the panels' edges included."""
    inspector = PatchInspector(work)
    view, rows = inspector.view(), set(inspector.triple.targets)
    for number in (0, len(rows) // 2, 2 * len(rows) - 1, 3 * len(rows) - 1):
        before, chosen, row = shown(inspector), inspector.source.value, inspector.triple.targets[number]
        inspector.triple.buttons[number].click()
        assert inspector.source.value == row
        assert inspector.triple.buttons[number].tooltip.split()[0] == view.sources.ID[row]
        assert inspector.details.value == full_table_html(source_lines(view, row), SOURCE_HEAD)
        assert all((a != b) == (row != chosen) for a, b in zip(shown(inspector), before))
    inside = [
        row
        for row in range(len(view.sources))
        if np.all(
            np.abs(
                np.array([view.paint.white_marks.x[row], view.paint.white_marks.y[row]])
                - (np.array(view.paint.white.data.shape[::-1]) - 1) / 2
            )
            < np.array(view.paint.white.data.shape[::-1]) / 2
        )
    ]
    assert rows == set(inside), "sources outside of the picture cannot be clicked"


def test_a_late_click_chooses_nothing(work):
    """The click on a picture that is not shown any more, as a busy kernel gets it: not the source of the same
    number in another patch.
    """
    inspector = PatchInspector(work)
    spots, parts = list(inspector.triple.buttons), dict(inspector.map.buttons)
    inspector.patch.value = inspector.patch.options[-1][1]
    chosen = inspector.source.value
    for spot in (spots[1], spots[-1]):
        spot.click()
    assert inspector.source.value == chosen
    inspector.frame.buttons[1, 1].click()
    before = inspector.patch.value
    parts[1, 0].click()
    assert inspector.patch.value == before


def test_buttons_that_are_shown_no_more_are_let_go(work):
    """A widget lives until it is closed; an afternoon of clicks must not fill the memory with buttons."""
    inspector = PatchInspector(work)
    old = [*inspector.triple.buttons, *inspector.map.buttons.values()]
    assert all(part.comm is not None for button in old for part in (button, button.layout))
    inspector.cell.value = "r01_c01"
    assert all(part.comm is None for button in old for part in (button, button.layout))


def test_spots_lie_on_their_sources(work):
    """The pixel in the middle of a button, counted back through the picture's layout, is where the fit put
    the source.
    """
    inspector = PatchInspector(work)
    view = inspector.view()
    sheet = patch_sheet(view)
    plan, marks = plan_of(sheet, 80), view.paint.white_marks
    for x, y, row, _ in spots_of(view, sheet):
        panel = max(k for k, left in enumerate(plan.lefts) if left <= x)
        unit = plan.magnify / plan.thin
        assert (x - plan.lefts[panel]) / unit - 0.5 == pytest.approx(marks.x[row])
        assert (plan.tops[0] + plan.panel[0] - y) / unit - 0.5 == pytest.approx(marks.y[row])


def test_the_list_holds_what_the_patch_measures(work, catalog):
    inspector = PatchInspector(work)
    tag = inspector.patch.value
    listed_ids = {
        text.split()[0]
        for text, _ in inspector.source.options
        if "halo" not in text and "excluded" not in text
    }
    assert listed_ids == set(catalog.ID[catalog.patch_tag == tag])


def test_the_index_is_the_catalog(work, catalog):
    index = open_run(work).index
    pd.testing.assert_series_equal(
        index["fit_is_reliable"].fillna(False), catalog["fit_is_reliable"].fillna(False)
    )
    assert index["ID"].tolist() == catalog["ID"].tolist()
    np.testing.assert_allclose(index["x_pix_white"], catalog["x_pix_white"])


@pytest.mark.parametrize("suffix", [".fits", ".ecsv"])
def test_catalogs_of_other_formats_are_read(copy, catalog, suffix):
    from tract7dt.results.merge import write_catalog

    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["outputs"]["final_catalog"] = manifest["config"]["outputs"]["final_catalog"].replace(
        ".csv", suffix
    )
    path.write_text(json.dumps(manifest))
    write_catalog(catalog, copy / f"output_catalog{suffix}", BANDS)
    (copy / "output_catalog.csv").unlink()
    assert open_run(copy).index["ID"].tolist() == catalog["ID"].tolist()
    assert ZeroPointInspector(copy).numbers.value == ZeroPointInspector(copy.parent / "moved").numbers.value
    assert SourceInspector(copy).message.value.count("is not there") == 0


def test_a_source_shows_the_fluxes_of_the_catalog(work, catalog):
    inspector = SourceInspector(work)
    for name in ("00004", "00102", "00204"):
        inspector.find.value = name
        row = catalog[catalog.ID == name].iloc[0]
        if not row.stype_fit:
            continue
        for band in BANDS:
            assert inspector.chosen.values[f"FLUX_{band}_fit"] == pytest.approx(
                row[f"FLUX_{band}_fit"], rel=1e-9
            )
            assert inspector.chosen.values[f"FLUXERR_{band}_fit"] == pytest.approx(
                row[f"FLUXERR_{band}_fit"], rel=1e-9
            )


def test_a_source_shows_what_the_catalog_says_of_its_fluxes(work, catalog):
    """Microjansky, verdict and misfit, each as it stands in the final catalog."""
    inspector = SourceInspector(work)
    for name in ("00004", "00102", "00204"):
        row = catalog[catalog.ID == name].iloc[0]
        inspector.find.value = name
        if not row.stype_fit:
            continue
        for told, band in zip(worth_lines(inspector.chosen), BANDS, strict=True):
            assert told[0] == band
            fnu, error = (float(value) for value in told[1].split(" ± "))
            assert fnu == pytest.approx(row[f"FNU_{band}"], rel=1e-3)
            assert error == pytest.approx(row[f"FNUERR_{band}"], rel=0.05)
            assert float(told[2]) == pytest.approx(row[f"misfit_{band}"], abs=6e-4)
            assert told[4] == ("yes" if row[f"reliable_{band}"] else "no")
        assert inspector.worth.value.count("<tr>") == 1 + len(BANDS)


def test_a_flux_that_is_not_reliable_is_marked_with_its_reason(work, copy):
    path = copy / "output_catalog.csv"
    table = pd.read_csv(path, dtype={"ID": str})
    table.loc[table.ID == "00004", ["reliable_m650", "flags_m650"]] = [False, int(BandFlag.LIGHT_LEFT)]
    table.to_csv(path, index=False)
    before, after = SourceInspector(work), SourceInspector(copy)
    for inspector in (before, after):
        inspector.find.value = "00004"
    assert is_doubted(before.chosen).tolist() == [False] * 3
    assert is_doubted(after.chosen).tolist() == [False, True, False]
    assert after.sed.value != before.sed.value and "light left" in after.worth.value
    assert after.images.value == before.images.value


def test_catalogs_of_earlier_versions_are_shown_as_far_as_they_go(copy):
    new = ("misfit_", "apflux_", "flags_", "reliable_", "FNU", "MAGLIM3_", "DEPTH5_", "zp_source_")
    for path in (copy / "output_catalog.csv", *copy.glob("outputs/*/*_cat_fit.csv")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.drop(columns=[name for name in table if name.startswith(new)]).to_csv(path, index=False)
    inspector = SourceInspector(copy)
    inspector.find.value = "00004"
    assert inspector.sed.value and TROUBLE not in inspector.message.value
    assert {line[4] for line in worth_lines(inspector.chosen)} == {"–"}
    assert all(shown(PatchInspector(copy)))


def test_a_run_that_was_not_merged_has_no_verdicts_yet(copy):
    (copy / "output_catalog.csv").unlink()
    inspector = SourceInspector(copy)
    assert {line[4] for line in worth_lines(inspector.chosen)} == {"–"}
    assert all(shown(inspector))


def test_the_worst_sources_of_a_patch_come_first(work):
    inspector = PatchInspector(work)
    sources = inspector.view().sources
    table = sources.assign(**{f"misfit_{band}": 0.0 for band in BANDS})
    owned = table.index[~table["_is_halo_source"].astype(bool)]
    brightest = owned[np.argsort(-table.loc[owned, "FLUX_m750_fit"].to_numpy(float))[:2]]
    table.loc[brightest, "misfit_m750"] = [0.3, 0.6]
    table.loc[brightest, "FLUXERR_m750_fit"] = 0.01 * table.loc[brightest, "FLUX_m750_fit"]
    table.loc[brightest[1], "flags_m750"] = int(BandFlag.MISFIT)
    options = source_options(replace(inspector.view(), sources=table))
    assert [row for _, row in options[:2]] == [table.index.get_loc(k) for k in brightest[::-1]]
    assert options[0][0].endswith("[m750: misfit 0.6; misfit]")
    assert sorted(row for _, row in options) == list(range(len(table)))


def test_every_source_of_the_sample_can_be_chosen(work, catalog):
    """Also those without a fit: their fate is told, and why there is no picture."""
    inspector = SourceInspector(work)
    unfitted = catalog[catalog.stype_fit == ""]
    assert len(unfitted) > 5
    for row in unfitted.itertuples():
        inspector.find.value = row.ID
        assert "excluded" in inspector.fate.value
        assert bool(inspector.images.value) != bool(inspector.message.value)


def test_neighbours_lie_where_the_catalog_says(work, catalog):
    inspector = SourceInspector(work)
    inspector.find.value = "00028"
    places = catalog.set_index("ID")[["x_pix_white_fit", "y_pix_white_fit"]].astype(float).dropna()
    near = {row[0]: float(row[1]) for row in rows_of(inspector.neighbours.value) if row[0] in places.index}
    assert near
    distance = np.hypot(*(places.loc[list(near)] - places.loc["00028"]).T.to_numpy())
    assert len(near) > 1 and list(near.values()) == sorted(near.values()), "the nearest first"
    np.testing.assert_allclose(
        list(near.values()),
        distance,
        atol=0.3,
        err_msg="a halo source is measured by its own patch, a little differently",
    )


def test_the_list_of_sources_follows_its_filter(work, catalog):
    inspector = SourceInspector(work)
    inspector.show.value = "galaxies"
    kind = catalog.set_index("ID").stype_fit
    assert set(kind[list(inspector.source.options)]) <= {"exp", "dev", "sersic"}
    inspector.show.value = "excluded"
    excluded = catalog.ID[catalog.excluded_reason != ""].tolist()
    assert list(inspector.source.options) == excluded[:MOST_LISTED]


@pytest.mark.parametrize("sigma, rounds", [(1.5, 10), (2.0, 1), (5.0, 10)])
def test_the_knobs_give_what_the_stage_would(work, catalog, sigma, rounds):
    """The zero point of a knob's position is that of the zero-point stage with the same configuration."""
    inspector = ZeroPointInspector(work)
    inspector.band.value = "m650"
    inspector.set_knobs(sigma, rounds)
    inspector.solve()
    settings = inspector.run.cfg.zp.model_copy(update={"clip_sigma": sigma, "clip_max_iters": rounds})
    stars = zp.band_stars(catalog, load_gaia(inspector.run.cfg.inputs.gaiaxp_synphot_csv, BANDS), "m650")
    expected, _ = zp.solve_band(stars, "m650", settings)
    assert f"{expected.zp:.4f} ± {expected.zp_err:.4f}" in inspector.numbers.value
    assert f"{expected.n_used} used, {expected.n_clipped} clipped" in inspector.numbers.value


def test_a_knob_changes_picture_and_numbers_at_once(work):
    inspector = ZeroPointInspector(work)
    picture, numbers = inspector.picture.value, inspector.numbers.value
    inspector.sigma.value = 1.0
    assert inspector.picture.value != picture and inspector.numbers.value != numbers
    inspector.reset.click()
    assert (inspector.picture.value, inspector.numbers.value) == (picture, numbers)


def test_zero_points_without_the_gaia_table(copy, work):
    """The stars that took part are in the products; the zero point is the same."""
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["inputs"]["gaiaxp_synphot_csv"] = None
    path.write_text(json.dumps(manifest))
    without, with_table = ZeroPointInspector(copy), ZeroPointInspector(work)
    assert without.view().zero.zp == pytest.approx(with_table.view().zero.zp, abs=1e-9)


def spoil(path):
    """Damage a product: cut it in half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BROKEN = [
    (EPSFInspector, "EPSFs/epsf_summary.json", "epsf_summary.json: there is no such file", "damaged"),
    (EPSFInspector, "EPSFs/m500/psf_model.fits", "psf_model.fits: there is no such file", "damaged"),
    (PatchInspector, "patches/patches.csv", "patches.csv: there is no such file", ""),
    (PatchInspector, "patch_payloads/r00_c00_pr00_pc00.fits.gz", "run build-patch-inputs", "damaged"),
    (SourceInspector, "patches/patches.csv", "patches.csv: there is no such file", ""),
    (EPSFInspector, "manifest.json", "no manifest.json here", "cannot be understood"),
    (ZeroPointInspector, "manifest.json", "no manifest.json here", "cannot be understood"),
]


@pytest.mark.parametrize(
    "inspector, name, missing, damaged", BROKEN, ids=[f"{i.__name__}-{n}" for i, n, *_ in BROKEN]
)
def test_missing_and_damaged_products_are_told(inspector, name, missing, damaged, copy):
    if damaged:
        spoil(copy / name)
        assert damaged in inspector(copy).message.value
    (copy / name).unlink()
    broken = inspector(copy)
    assert missing in broken.message.value and not any(shown(broken))


GONE = [
    "EPSFs",
    "EPSFs/m500",
    "EPSFs/epsf_summary.json EPSFs/m650/r00_c00",
    "patches",
    "patch_payloads",
    "outputs",
    "outputs/run_summary.csv outputs/r00_c00_pr00_pc00",
    "patch_payloads/r01_c01_pr01_pc01.fits.gz",
    "output_catalog.csv",
    "ZP tile bright_mask wcs.fits",
]


@pytest.mark.parametrize("gone", GONE)
def test_whatever_is_gone_every_control_still_works(gone, copy):
    """Each inspector, each of its selectors at its last choice: pictures or a sentence, never a traceback."""
    for path in (copy / name for name in gone.split()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for kind in INSPECTORS:
        opened = kind(copy)
        for name in ("band", "cell", "patch", "show", "source"):
            control = getattr(opened, name, None)
            if control is not None and len(control.options) > 1:
                control.value = control._options_full[-1][1]
        assert any(shown(opened)) or TROUBLE in opened.message.value, (gone, kind)
        if kind is PatchInspector and not any(shown(opened)):
            assert not getattr(opened.source, "options", ()) and not opened.band.options, (
                "what belongs to a patch goes with its pictures"
            )
        assert len(opened.message.value) < 500


@pytest.mark.parametrize("inspector", INSPECTORS)
def test_a_row_of_a_batch_is_a_run(inspector, work):
    """What `run-many` says of a tile leads to the tile's run."""
    row = TileRow(str(next(work.glob("config_used_*.yaml"))), status="done")
    assert any(shown(inspector(row))) and shown(inspector(row)) == shown(inspector(work))


def test_a_patch_that_cannot_be_read_offers_nothing(copy):
    """No source and no band of the patch before it can be chosen, and the patch after it is as it was."""
    inspector = PatchInspector(copy)
    first, second = (tag for _, tag in inspector.patch.options[:2])
    before, options = shown(inspector), inspector.source.options
    (copy / f"patch_payloads/{second}.fits.gz").unlink()
    inspector.patch.value = second
    assert TROUBLE in inspector.message.value and not any(shown(inspector)) and inspector.details.value == ""
    assert inspector.source.options == () and inspector.band.options == () and inspector.triple.buttons == []
    inspector.patch.value = first
    assert (
        shown(inspector) == before and inspector.source.options == options and inspector.message.value == ""
    )


def test_a_broken_band_leaves_the_others_alone(copy):
    (copy / "EPSFs/m500/psf_model.fits").unlink()
    inspector = EPSFInspector(copy)
    inspector.band.value = "m650"
    assert inspector.message.value == "" and all(shown(inspector))
    inspector.band.value = "m500"
    assert "psf_model.fits: there is no such file" in inspector.message.value and not any(shown(inspector))


def test_a_band_that_failed_says_why(copy):
    path = copy / "EPSFs/epsf_summary.json"
    rows = [row for row in json.loads(path.read_text()) if row["band"] != "m650"]
    path.write_text(
        json.dumps(rows + [{"band": "m650", "status": "band_fail", "error": "OSError: truncated"}])
    )
    inspector = EPSFInspector(copy)
    inspector.band.value = "m650"
    assert "band m650 has no ePSF: OSError: truncated" in inspector.message.value


def test_without_the_images_the_stamps_are_shown(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["inputs"]:
        entry["path"] = entry["path"].replace("/images/", "/gone/")
    path.write_text(json.dumps(manifest))
    inspector = EPSFInspector(copy)
    assert "image of band m500 is not where it was" in inspector.message.value
    assert inspector.stamp.value and inspector.growth.value and not inspector.map.value
    patches = PatchInspector(copy)
    assert all(shown(patches)), "payloads hold all that patches need"
    with pytest.raises(UserError, match="not where it was"):
        open_band(open_run(copy), "m500")


def test_images_that_are_put_back_are_found(copy, tmp_path):
    """An absence is not remembered, nor what another file said under the same name."""
    images = tmp_path / "images"
    images.mkdir()
    run, paths = open_run(copy), {name: images / f"{name}.fits" for name in ("one", "two")}
    known = {band: open_band(run, band).path for band in BANDS}
    shutil.copy(known["m500"], paths["one"])
    assert files_by_band(tuple(paths.values()), Config().inputs) == {"m500": paths["one"]}
    shutil.copy(known["m650"], paths["two"])
    assert files_by_band(tuple(paths.values()), Config().inputs) == {
        "m500": paths["one"],
        "m650": paths["two"],
    }
    paths["one"].unlink()
    shutil.copy(known["m750"], paths["one"])
    assert files_by_band(tuple(paths.values()), Config().inputs) == {
        "m750": paths["one"],
        "m650": paths["two"],
    }


@pytest.mark.parametrize("inspector", (PatchInspector, SourceInspector))
def test_a_source_can_be_found_again(inspector, work, catalog):
    """The field is empty afterwards, an empty field asks for nothing, and a complaint goes with the next
    choice.
    """
    opened = inspector(work)
    wanted = catalog.ID[(catalog.patch_tag == "r01_c00_pr00_pc01") & (catalog.stype_fit != "")].iloc[-1]

    def chosen():
        return (
            opened.chosen.fate["ID"]
            if inspector is SourceInspector
            else opened.view().sources.ID[opened.source.value]
        )

    for _ in range(2):
        opened.find.value = wanted
        assert chosen() == wanted and opened.find.value == "" and opened.message.value == ""
        opened.source.value = next(
            value for _, value in opened.source._options_full if value != opened.source.value
        )
        assert chosen() != wanted
    before = chosen()
    opened.find.value = "nobody"
    assert "nobody: no such source" in opened.message.value and chosen() == before
    opened.find.value = ""
    assert ": no such source" not in opened.message.value.replace("nobody: ", "")
    opened.source.value = next(
        value for _, value in opened.source._options_full if value != opened.source.value
    )
    assert opened.message.value == ""


def test_a_source_of_a_patch_that_is_not_listed_is_told(copy, catalog):
    path = copy / "patches/patches.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "r00_c01_pr01_pc01" not in line))
    inspector = PatchInspector(copy)
    inspector.find.value = catalog.ID[catalog.patch_tag == "r00_c01_pr01_pc01"].iloc[0]
    assert "patch r00_c01_pr01_pc01, which patches.csv does not list; run" in inspector.message.value


@pytest.mark.parametrize("inspector", INSPECTORS)
def test_what_is_no_run_is_told(inspector):
    assert "None is no run; give a configuration" in inspector(None).message.value


@pytest.mark.parametrize("text", ["[]", "null", '"config"', "3", '{"config": null}', "{}"])
def test_a_manifest_that_is_none_is_told(text, copy):
    (copy / "manifest.json").write_text(text)
    assert re.search("manifest.json: (cannot be understood|damaged)", EPSFInspector(copy).message.value)


@pytest.mark.parametrize(
    "text, told",
    [
        ("null", "damaged"),
        ("{}", "damaged"),
        ("[1, 2]", "damaged"),
        ('[{"patch": 1}]', "damaged"),
        ("[]", "no band is listed"),
    ],
)
def test_a_summary_that_is_none_is_told(text, told, copy):
    (copy / "EPSFs/epsf_summary.json").write_text(text)
    inspector = EPSFInspector(copy)
    assert (
        f"epsf_summary.json: {told}" in inspector.message.value
        and "run tract7dt run-epsf again" in inspector.message.value
    )
    assert inspector.children == (inspector.message,)


@pytest.mark.parametrize("name", ["verdict", "x0", "cfg", "nstars_used", "band_model"])
def test_a_cell_without_its_numbers_is_told(name, copy):
    path = copy / "EPSFs/epsf_summary.json"
    rows = json.loads(path.read_text())
    next(row for row in rows if row["band"] == "m500" and row["patch"] == "r01_c01").pop(name)
    path.write_text(json.dumps(rows))
    inspector = EPSFInspector(copy)
    assert (
        f"epsf_summary.json: damaged or of another version (KeyError: &#x27;{name}&#x27;)"
        in inspector.message.value
        and not any(shown(inspector))
    )
    inspector.band.value = "m650"
    assert inspector.message.value == "" and all(shown(inspector))


def test_a_stamp_of_another_size_is_told(copy):
    path = open_run(copy).layout.epsf_stamp("m500", "r01_c01")
    np.save(path, np.full((3, 3), 1 / 9))
    assert f"{path.name}: damaged" in EPSFInspector(copy).message.value


def test_the_knobs_wait_until_they_are_let_go(work):
    """A zero point takes longer than a step of a slider that is dragged: the kernel would lag behind."""
    inspector = ZeroPointInspector(work)
    assert not any(
        knob.continuous_update for knob in (inspector.sigma, inspector.rounds, inspector.magnitudes)
    )


def test_no_tab_is_no_trouble(work):
    inspector = RunInspector(work)
    inspector.selected_index = None
    assert list(inspector.opened) == ["ePSFs"]


def test_a_limit_has_no_error():
    """The fit gives 0 as the error of a parameter that ended at its limit: that is no error of nothing."""
    view = SimpleNamespace(
        values=pd.Series({"Re_fit": 0.1, "Re_err_fit": 0.0, "ELL_fit": 0.5, "ELL_err_fit": 0.1}),
        start={"Re": 1.0, "ELL": 0.3},
    )
    assert start_lines(view) == [("Re", "1.00", "0.100", "–", "–"), ("ELL", "0.30", "0.500", "0.100", "+2.0")]


@pytest.mark.parametrize(
    "inspector, names",
    [(EPSFInspector, ("views", "stars")), (PatchInspector, ("views", "maps")), (SourceInspector, ("views",))],
)
def test_what_was_read_is_forgotten_in_the_end(inspector, names, work, catalog, monkeypatch):
    """Of an afternoon's patches only the last ones stay in memory."""
    monkeypatch.setattr(base, "MOST_KEPT", 2)
    opened = inspector(work)
    for band in BANDS if inspector is EPSFInspector else ():
        opened.band.value = band
        assert all(shown(opened))
    for tag in (
        ()
        if inspector is EPSFInspector
        else ("r00_c01_pr00_pc00", "r01_c00_pr00_pc00", "r01_c01_pr00_pc00", "r00_c00_pr00_pc00")
    ):
        opened.find.value = catalog.ID[(catalog.patch_tag == tag) & (catalog.stype_fit != "")].iloc[0]
        assert all(shown(opened))
    assert all(len(getattr(opened, name)) == 2 for name in names)


def test_before_the_merge_the_patch_catalogs_serve(copy):
    (copy / "output_catalog.csv").unlink()
    assert all(shown(SourceInspector(copy))) and all(shown(PatchInspector(copy)))


def test_an_empty_run_is_no_traceback(tmp_path):
    cfg = load_config(SAMPLE / "config.yaml", {"outputs.work_dir": tmp_path})
    for inspector in INSPECTORS:
        assert re.search("is not there|there is no such file", inspector(cfg).message.value)
    assert Layout.of(cfg.outputs).work_dir == tmp_path
    assert list(tmp_path.iterdir()) == [], "looking writes nothing"


def test_texts_are_escaped():
    """An ID of the user's is text, not HTML."""
    assert "<script>" not in full_table_html([["<script>"]], ["<script>"])


@pytest.mark.parametrize(
    "bands, centres",
    [
        (["m386", "m400", "m425w"], [386, 400, 425]),
        (["u", "z"], [350, 900]),
        (["m405"], None),
        (["g", "W1"], None),
    ],
)
def test_wavelengths_of_known_bands(bands, centres):
    found = wavelengths(bands)
    assert found is None if centres is None else found[0].tolist() == centres


@pytest.mark.parametrize("inspector", INSPECTORS)
def test_bands_fitted_alone_are_shown(inspector, alone_run):
    """A run in single-band mode has columns of its own; every inspector knows them."""
    cfg, result = alone_run
    opened = inspector(result)
    assert TROUBLE not in opened.message.value
    assert all(shown(opened))


def test_a_patch_of_bands_fitted_alone_is_the_catalog(alone_run):
    inspector = PatchInspector(alone_run[1])
    assert inspector.message.value == "", "the refit agrees with the catalog"
    before = inspector.triple.value
    inspector.band.value = inspector.band.options[2]
    assert inspector.triple.value != before


def test_a_source_of_bands_fitted_alone_has_moved(alone_run):
    cfg, result = alone_run
    inspector = SourceInspector(result)
    names = [row[0] for row in rows_of(inspector.moves.value)]
    assert names[:2] == ["x_pix_white", "y_pix_white"]
    assert len(inspector.source.options) == (result.catalog["stype_fit"] != "").sum()


@pytest.mark.parametrize("inspector", INSPECTORS)
def test_without_anything_to_show_there_is_no_control(inspector, tmp_path):
    """A control that leads nowhere would end in a traceback."""
    opened = inspector(tmp_path / "nowhere.yaml")
    assert opened.children == (opened.message,) and "nowhere.yaml" in opened.message.value


def test_all_inspectors_in_one_open_when_they_are_looked_at(work):
    inspector = RunInspector(work)
    assert list(inspector.opened) == ["ePSFs"]
    for number, name in enumerate(inspector.titles):
        inspector.selected_index = number
        assert all(shown(inspector.opened[name]))
    assert [type(each) for each in inspector.opened.values()] == list(INSPECTORS)
