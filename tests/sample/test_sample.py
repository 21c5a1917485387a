"The simulated tile: its files, its truth, and that it can be made again."

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from tract7dt.config.load import load_config
from tract7dt.core.errors import UserError
from tract7dt.core.geometry import Box, make_cells
from tract7dt.patches.geometry import divide_cell, halo_pixels
from tract7dt.sample.images import (
    HOLE_BAND,
    observe,
    punch_holes,
    render_sources,
    saturation_level,
    write_image,
)
from tract7dt.sample.make import make_sample, sample_catalog, sample_gaia
from tract7dt.sample.psf import SAMPLE_BANDS, sample_band, true_psf
from tract7dt.sample.scene import CROP_MARGIN, sample_scene

FOLDER = Path(__file__).parents[2] / "sample_data"


@pytest.fixture(scope="module")
def scene():
    return sample_scene()


@pytest.fixture(scope="module")
def truth():
    return Table.read(FOLDER / "truth.ecsv").to_pandas()


def read_text_table(name):
    return pd.read_csv(FOLDER / name, dtype=str, keep_default_na=False)


def test_the_committed_files_are_small():
    files = [
        path for path in FOLDER.rglob("*") if path.is_file() and "work" not in path.relative_to(FOLDER).parts
    ]
    assert sum(path.stat().st_size for path in files) <= 10e6


@pytest.mark.parametrize("band", SAMPLE_BANDS, ids=lambda band: band.name)
def test_headers(band):
    header = fits.getheader(FOLDER / "images" / f"{band.name}.fits.fz", 1)
    assert header["FILTER"] == band.name
    assert header["ZP_AUTO"] == band.zp_auto != band.zp_true
    assert (header["SKYSIG"], header["EGAIN"], header["SATURATE"]) == (band.skysig, band.egain, band.saturate)
    assert 2.8 <= header["PEEING"] <= 3.5
    assert header["SEEING"] == pytest.approx(0.505 * header["PEEING"], abs=1e-3)
    scale = np.abs(WCS(header).wcs.cd).max() * 3600
    assert scale == pytest.approx(0.505)


def test_pixels_are_float_and_only_one_band_has_holes():
    for band in SAMPLE_BANDS:
        image = fits.getdata(FOLDER / "images" / f"{band.name}.fits.fz", 1)
        assert image.dtype.kind == "f" and min(image.shape) - 2 * CROP_MARGIN >= 800
        assert np.isnan(image).any() == (band.name == HOLE_BAND)
        assert np.nanmax(image) > saturation_level(band)


def test_same_seed_same_bytes(tmp_path, scene):
    near = scene[scene.x.between(380, 480) & scene.y.between(380, 480)].reset_index(drop=True)
    band = sample_band("m850")
    for name in "ab":
        image = observe(render_sources(near, band)[0], band, 7)
        write_image(tmp_path / name, punch_holes(image, scene, 7), band, "small")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not np.array_equal(observe(np.zeros((9, 9)), band, 7), observe(np.zeros((9, 9)), band, 8))


def test_committed_tables_are_those_of_the_seed(scene, truth):
    again = scene.assign(SNR_m650=truth["SNR_m650"])
    assert (FOLDER / "catalog.csv").read_text() == sample_catalog(again, "small", 7).to_csv(
        index=False, lineterminator="\n"
    )
    assert (FOLDER / "gaia_xp.csv").read_text() == sample_gaia(again, "small", 7).to_csv(
        index=False, lineterminator="\n"
    )


def test_truth_fluxes_magnitudes_and_zero_points(truth):
    bands = Table.read(FOLDER / "truth_bands.ecsv").to_pandas().set_index("band")
    for band in SAMPLE_BANDS:
        np.testing.assert_allclose(
            truth[f"FLUX_{band.name}"], 10 ** (0.4 * (25 - truth[f"MAG_{band.name}"])), rtol=1e-4
        )
        row = bands.loc[band.name]
        assert row.zp_expected == pytest.approx(25 + row.zp_true - row.zp_auto)
        assert 2.5 * np.log10(row.flux_scale) == pytest.approx(row.zp_expected - 25, abs=1e-6)


def test_truth_flux_is_in_the_image(truth):
    "An isolated bright star, summed in the image and scaled with the true zero point."
    band = sample_band("m650")
    image = fits.getdata(FOLDER / "images/m650.fits.fz", 1) - band.sky_level * band.skysig
    lonely = truth[
        (truth.kind == "STAR") & ~truth.saturated & (truth.SNR_m650 > 200) & (truth.neighbour_pix > 30)
    ]
    assert len(lonely) >= 3
    ratios = []
    for row in lonely.itertuples():
        x, y = round(row.x), round(row.y)
        if min(x, y) < 12 or y + 13 > image.shape[0] or x + 13 > image.shape[1]:
            continue
        yy, xx = np.mgrid[y - 12 : y + 13, x - 12 : x + 13]
        inside = np.hypot(xx - row.x, yy - row.y) < 12
        counts = image[y - 12 : y + 13, x - 12 : x + 13][inside].sum() * 10 ** (0.4 * (25 - band.zp_true))
        psf = true_psf("m650", row.x, row.y, 101)
        part = psf[np.hypot(*np.mgrid[-50:51, -50:51]) < 12].sum()
        ratios.append(counts / part / row.FLUX_m650)
    assert np.median(ratios) == pytest.approx(1, abs=0.01)


def test_population(truth):
    counts = truth.kind.value_counts()
    assert 140 <= counts["STAR"] <= 160 and 230 <= len(truth) - counts["STAR"] <= 270
    assert min(counts[["EXP", "DEV", "SERSIC"]]) >= 40
    assert (
        truth.SNR_m650[~truth.saturated].min() < 3.5 and 500 < truth.SNR_m650[~truth.saturated].max() < 1500
    )
    assert (truth.neighbour_pix < 9).sum() >= 40
    assert truth.loc[truth.saturated, "in_catalog"].nunique() == 2
    assert ((truth.role == "unlisted_bright") & ~truth.in_gaia & ~truth.in_catalog).sum() == 2
    calibrators = truth[truth.in_gaia & ~truth.saturated & truth.in_catalog]
    assert len(calibrators) >= 30
    assert 0.3 < (~truth[truth.in_gaia].in_catalog).mean() < 0.37


def test_catalog_oddities(truth):
    catalog = read_text_table("catalog.csv")
    assert catalog.ID.is_unique and (catalog.ID != "").all()
    assert {"NA", "00001"} <= set(catalog.ID)
    assert (catalog.RA == "").sum() == 1
    assert catalog.NOTE[~catalog.ID.isin(truth.ID)].tolist() == ["no coordinates", "another tile"]
    placed = catalog[catalog.RA != ""].merge(truth, on="ID", suffixes=("", "_true"))
    off = np.hypot(
        (placed.RA.astype(float) - placed.RA_true) * np.cos(np.radians(2.2)),
        placed.DEC.astype(float) - placed.DEC_true,
    )
    assert 0.1 < np.median(off) * 3600 / 0.505 < 0.2
    margin = truth[truth.role == "margin"]
    assert len(margin) == 8 and margin.in_catalog.all()


def test_gaia_table_matches_the_truth(truth):
    gaia = read_text_table("gaia_xp.csv")
    assert gaia.source_id.str.fullmatch(r"\d{19}").all() and gaia.source_id.is_unique
    both = gaia.merge(truth[truth.in_gaia], on="source_id")
    assert len(both) == truth.in_gaia.sum() < len(gaia)
    for band in SAMPLE_BANDS:
        difference = pd.to_numeric(both[f"mag_{band.name}"]) - both[f"MAG_{band.name}"]
        assert 0.003 < difference.std() < 0.012 and abs(difference.mean()) < 0.003


def test_a_galaxy_sits_in_the_last_pixel_of_a_patch_region(truth):
    "Its x is less than the width of the region, but rounds to it."
    cfg = load_config(FOLDER / "config.yaml")
    assert cfg.crop.margin == CROP_MARGIN
    shape = tuple(
        side - 2 * cfg.crop.margin for side in fits.getdata(FOLDER / "images/m400.fits.fz", 1).shape
    )
    halo = halo_pixels(cfg.epsf.final_psf_size, cfg.patches.halo_pix_min)
    patches = [
        p
        for cell in make_cells(shape, cfg.epsf.epsf_ngrid)
        for p in divide_cell(cell, cfg.epsf.ngrid, halo, Box.of_shape(shape))
    ]
    for role in ("last_pixel_of_patch", "last_pixel_of_frame"):
        galaxy = truth[truth.role == role].iloc[0]
        x, y = galaxy.x - CROP_MARGIN, galaxy.y - CROP_MARGIN
        last = [p for p in patches if p.roi.contains(x, y) and p.roi.x1 - 1 < x < p.roi.x1]
        assert last, role
        assert any(round(x - p.roi.x0) == p.roi.width for p in last)


def test_a_hole_swallows_one_galaxy(truth):
    galaxy = truth[truth.role == "on_nan_patch"].iloc[0]
    image = fits.getdata(FOLDER / "images" / f"{HOLE_BAND}.fits.fz", 1)
    x, y = round(galaxy.x), round(galaxy.y)
    assert np.isnan(image[y - 15 : y + 16, x - 15 : x + 16]).all()


def test_make_sample_replaces_only_a_sample(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="--force"):
        make_sample(tmp_path)
    with pytest.raises(UserError, match="not a sample"):
        make_sample(tmp_path, force=True)
    assert (tmp_path / "mine.txt").exists()


def test_without_galsim_the_user_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "galsim", None)
    with pytest.raises(UserError, match="pip install galsim"):
        make_sample(tmp_path / "new")
    assert not (tmp_path / "new").exists()
