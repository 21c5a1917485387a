"""The fit of a patch, read from its products, is the one that was made: sources to the last bit, model images
to where their light ends.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tract7dt.fit.problem import FitOptions
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.payload import read_payload
from tract7dt.patches.problem import load_psfs
from tract7dt.patches.stored import read_fit
from tract7dt.pipeline.run_patches import run_patch
from tract7dt.plots.patch import paint_patch
from tract7dt.results.finished import moved, open_run
from tract7dt.results.merge import read_catalog
from tract7dt.results.model_images import BandSources, draw_strip, skies
from tract7dt.widgets.patch import find_fit, read_patch
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("middle_run")
TAG = "r00_c00_pr01_pc01"
WAYS = {
    "as configured": {},
    "each band alone": {"enable_multi_band_simultaneous_fitting": False},
    "in pieces": {"max_group": 12},
    "sums of Gaussians": {"profiles": "mixture"},
    "hybrid PSFs": {"psf_model": "hybrid"},
}


@pytest.fixture
def fit_one(middle_run, tmp_path):
    """Fit one patch of the middle of the sample in a folder of its own with changed settings; returns
    configuration and layout.
    """
    cfg, _ = middle_run

    def fitted(**changes):
        folder = tmp_path / "work"
        here = moved(cfg.model_copy(update={"patch_run": cfg.patch_run.model_copy(update=changes)}), folder)
        shutil.copytree(
            Path(cfg.outputs.work_dir) / "EPSFs", folder / "EPSFs", ignore=shutil.ignore_patterns("*.png")
        )
        layout = Layout.of(here.outputs)
        layout.patch_inputs_dir.mkdir(parents=True)
        shutil.copy(Layout.of(cfg.outputs).payload(TAG), layout.patch_inputs_dir)
        run_patch(TAG, layout, here)
        return here, layout

    return fitted


def both(cfg, layout):
    """The fit that the products hold, and the same fit made again."""
    payload = read_payload(layout.payload(TAG))
    psfs = load_psfs(payload, layout, cfg)
    return read_fit(payload, psfs, layout, cfg), fit_patch(payload, psfs, cfg)


def off(stored, fit) -> np.ndarray:
    """Difference of the models in units of the sky noise, [bands, rows, columns]."""
    return (stored.model - fit.model) / np.array([cut.sky_sigma for cut in fit.payload.bands])[:, None, None]


@pytest.mark.parametrize("way", WAYS)
def test_products_hold_the_fit(fit_one, way):
    """Sources bit by bit. A source may have outgrown its footprint at some trial on the way, and have come
    back: there the models
    differ by the light at the footprint's edge. A footprint leaves out a squared S/N of `footprint_loss`,
    0.05, so that no pixel
    there has more than its root, 0.22 of the noise.
    """
    stored, fit = both(*fit_one(**WAYS[way]))
    pd.testing.assert_frame_equal(stored.sources, fit.sources, check_exact=True)
    assert stored.together == fit.together
    for band in (None, "m650"):
        np.testing.assert_array_equal(stored.place(band), fit.place(band))
    assert fit.payload.is_measured.sum() < len(fit.sources), "sources of the halo are part of the test"
    assert np.abs(off(stored, fit)).max() < np.sqrt(FitOptions().footprint_loss)
    assert np.abs(np.median(off(stored, fit), axis=(1, 2))).max() < 1e-4, (
        "the sky, under which most pixels have no other light"
    )
    assert (
        np.abs(fit.model - np.median(fit.model, axis=(1, 2), keepdims=True)).max()
        > 100 * fit.payload.bands[0].sky_sigma
    ), "there is light to differ"


def test_in_pieces_is_in_pieces(fit_one):
    _, fit = both(*fit_one(max_group=12))
    assert fit.result.subfields > 1 and np.ptp(fit.result.source_sky, axis=0).max() > 0


def test_the_inspector_paints_the_fit_of_the_run(fit_one):
    """Palette entries of data, model and residual in all bands: those of the fit made again, or the next
    shade.
    """
    cfg, layout = fit_one()
    run = open_run(cfg)
    _, fit = both(cfg, layout)
    shown, again = read_patch(run, TAG).paint, paint_patch(fit, cfg.patch_run)
    for one, two in zip((*shown.views, shown.white), (*again.views, again.white)):
        for a, b in zip(one.images, two.images):
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
            assert np.mean(a != b) < 0.02
    assert np.ptp(shown.views[0].model) > 50


def test_the_model_of_the_command_is_the_same(middle_run):
    """`tract7dt model` draws the final catalog: each source as its own patch measured it, saturated ones not
    at all.

    Inside a patch that has none, what differs is the light of sources beyond its edge, as two patches saw
    them: most pixels have
    none of it.
    """
    cfg, result = middle_run
    run = open_run(cfg)
    band = run.bands[1]
    catalog = read_catalog(run.layout.final_catalog)
    patch = run.patches[TAG]
    drawn = draw_strip(run, band, BandSources.of(catalog, band.name), skies(catalog, band), patch.base)
    fit, note = find_fit(run, read_payload(run.layout.payload(TAG)))
    number = list(fit.psfs).index(band.name)
    part = fit.model[number][patch.base.shift(-patch.roi.x0, -patch.roi.y0).slices]
    difference = np.abs(part - drawn) / band.sky_sigma
    assert note == ""
    assert np.median(difference) < 0.01 and np.quantile(difference, 0.95) < 0.2
    assert np.quantile(part, 0.999) - np.median(part) > 20 * band.sky_sigma


@pytest.mark.parametrize("change", [{"weak_priors": False}, {"profiles": "mixture"}, {"engine": "tractor"}])
def test_another_fit_is_not_shown(fit_one, change):
    cfg, layout = fit_one()
    payload = read_payload(layout.payload(TAG))
    other = cfg.model_copy(update={"patch_run": cfg.patch_run.model_copy(update=change)})
    assert read_fit(payload, load_psfs(payload, layout, cfg), layout, other) is None


def test_other_psfs_are_another_fit(fit_one):
    cfg, layout = fit_one()
    payload = read_payload(layout.payload(TAG))
    psfs = load_psfs(payload, layout, cfg)
    changed = psfs | {"m650": replace(psfs["m650"], stamp=psfs["m650"].stamp[::-1])}
    assert read_fit(payload, psfs, layout, cfg) is not None
    assert read_fit(payload, changed, layout, cfg) is None


@pytest.mark.parametrize("name", ["patch_catalog", "patch_others", "patch_meta"])
def test_without_a_product_there_is_no_stored_fit(fit_one, name):
    """Then the patch is fitted again, as it must be for runs of versions that did not keep all sources."""
    cfg, layout = fit_one()
    getattr(layout, name)(TAG).unlink()
    fit, note = find_fit(open_run(cfg), read_payload(layout.payload(TAG)))
    assert type(fit).__name__ == "PatchFit"
    assert ("has no catalog" in note) == (name == "patch_catalog")


@pytest.mark.parametrize("name", ["patch_catalog", "patch_others"])
def test_products_cut_short_are_no_fit(fit_one, name):
    """Half a table must not be taken for a patch with half of its light."""
    cfg, layout = fit_one()
    path = getattr(layout, name)(TAG)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    payload = read_payload(layout.payload(TAG))
    assert read_fit(payload, load_psfs(payload, layout, cfg), layout, cfg) is None
