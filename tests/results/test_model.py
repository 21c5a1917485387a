"""The model images of a run: what is left is noise, and what is drawn is what was fitted."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tract7dt.core.errors import UserError
from tract7dt.core.geometry import Box
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.payload import read_payload
from tract7dt.patches.problem import load_psfs
from tract7dt.pipeline.commands import model
from tract7dt.results.finished import FinishedRun, open_bands
from tract7dt.results.merge import read_catalog
from tract7dt.results.model_images import BandSources, draw_strip, skies

pytestmark = pytest.mark.xdist_group("middle_run")
BANDS = ("m500", "m650", "m750")


@pytest.fixture(scope="module")
def made(middle_run):
    return model(middle_run[0])


@pytest.fixture(scope="module")
def bands(middle_run):
    return {band.name: band for band in open_bands(middle_run[0])}


def far_from_excluded(result, distance=30):
    "Pixels farther than `distance` from every source that was not measured (its light is in the residual)."
    height, width = result.tile.shape
    left_out = result.catalog[result.catalog["stype_fit"].eq("")].dropna(subset=["x_pix_white"])
    y, x = np.indices((height, width))
    far = np.ones((height, width), bool)
    for row in left_out.itertuples():
        far &= np.hypot(x - row.x_pix_white, y - row.y_pix_white) > distance
    return far


@pytest.mark.parametrize("band", BANDS)
def test_the_residual_is_noise(middle_run, made, bands, band):
    _, result = middle_run
    pixels = result.tile.read(band)
    drawn, residual = fits.getdata(made.bands[band].model), fits.getdata(made.bands[band].residual)
    light = np.maximum(drawn - np.median(drawn), 0)
    variance = pixels.sky_sigma**2 + light / bands[band].gain_scaled
    good = pixels.good & far_from_excluded(result)
    chi2 = np.mean((residual**2 / variance)[good])
    # 1 within its own error, sqrt(2 / 100 000 pixels) = 0.005, plus what sources below the catalog's limit
    # and errors
    # of the PSF under bright stars leave: a few per cent of the sky's variance
    assert 0.98 < chi2 < 1.06
    assert abs(np.median(residual[good])) < 0.05 * np.median(pixels.sky_sigma)


def test_without_its_sources_the_model_is_far_from_the_data(made, bands):
    """The chi-square above can tell: with the sky alone it is many times larger."""
    drawn, residual = fits.getdata(made.bands["m650"].model), fits.getdata(made.bands["m650"].residual)
    data = np.nan_to_num(drawn + residual - np.median(drawn))
    assert np.mean(data**2) / bands["m650"].sky_sigma ** 2 > 10


def test_model_and_residual_add_up_to_the_data(made, bands):
    for name, files in made.bands.items():
        pixels = replace(bands[name], sky=None).read()
        total = fits.getdata(files.model) + fits.getdata(files.residual)
        np.testing.assert_allclose(total[pixels.good], pixels.image[pixels.good], rtol=1e-5, atol=1e-3)
        assert np.array_equal(np.isnan(total), (pixels.mask & 1) != 0)


@pytest.mark.parametrize("number", range(4))
def test_the_model_of_a_patch_is_the_fits_own(middle_run, made, bands, number):
    """Inside the base box, halo sources included; these were fitted by a neighbour too, with its own noise
    outside the box.
    """
    cfg, result = middle_run
    patch = result.patches[number]
    payload = read_payload(result.layout.payload(patch.tag))
    fitted = fit_patch(payload, load_psfs(payload, result.layout, cfg), cfg)
    far = far_from_excluded(result, 60)[patch.base.slices]
    for cut, image in zip(payload.bands, fitted.result.model):
        own = image[patch.base.shift(-patch.roi.x0, -patch.roi.y0).slices]
        drawn = fits.getdata(made.bands[cut.name].model)[patch.base.slices]
        sky = bands[cut.name].sky.image(patch.base)
        difference = ((drawn - sky - own) / cut.sky_sigma)[far]
        # light beyond the fit's footprints is below sqrt(0.05) = 0.22 of the noise by their definition; a
        # halo source is
        # measured twice from mostly the same pixels
        assert np.sqrt(np.mean(difference**2)) < 0.05
        assert np.abs(difference).max() < 0.25 * (own / cut.sky_sigma).max() ** 0.5


def test_strips_do_not_matter(middle_run, made, bands):
    cfg, result = middle_run
    catalog = read_catalog(result.layout.final_catalog)
    run = FinishedRun(cfg, result.layout)
    box = Box(40, 300, 100, 137)
    part = draw_strip(run, bands["m650"], BandSources.of(catalog, "m650"), skies(catalog, bands["m650"]), box)
    drawn = fits.getdata(made.bands["m650"].model)[box.slices] - bands["m650"].sky.image(box)
    np.testing.assert_allclose(part, drawn, rtol=1e-4, atol=1e-3)


def test_header(middle_run, made, bands):
    _, result = middle_run
    header = fits.getheader(made.bands["m500"].residual)
    assert (header["FILTER"], header["CONTENT"], header["MAGZERO"]) == ("m500", "residual", 25.0)
    positions = [[0.0, 200.0], [0.0, 100.0]]
    np.testing.assert_allclose(
        WCS(header).all_pix2world(*positions, 0), result.tile.wcs.all_pix2world(*positions, 0), atol=1e-9
    )


def test_names_of_bands(middle_run):
    cfg, result = middle_run
    with pytest.raises(UserError, match="--bands: no band m42; the image list has m500, m650, m750"):
        model(cfg, ("m500", "m42"))
    for path in result.layout.model_image("m500").parent.iterdir():
        path.unlink()
    assert list(model(cfg, "m750").bands) == ["m750"]
    assert sorted(p.name for p in result.layout.model_image("m500").parent.iterdir()) == [
        "m750_model.fits",
        "m750_residual.fits",
    ]


def test_a_failure_leaves_no_half_image(middle_run, monkeypatch):
    import tract7dt.results.model_images as room

    cfg, result = middle_run
    folder = result.layout.model_image("m500").parent
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(room, "draw_strip", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(cfg, "m750")
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_products_of_another_configuration_are_refused(middle_run):
    cfg, _ = middle_run
    other = cfg.model_copy(update={"patches": cfg.patches.model_copy(update={"halo_pix_min": 40})})
    with pytest.raises(UserError, match="run build-patch-inputs again"):
        model(other)


def test_single_band_mode(alone_run):
    """Each band is drawn with its own positions and shapes; its residual is noise too."""
    cfg, result = alone_run
    assert "x_pix_white_m650_fit" in result.catalog
    made = model(cfg, "m650").bands["m650"]
    pixels, residual = result.tile.read("m650"), fits.getdata(made.residual)
    good = pixels.good & far_from_excluded(result)
    assert made.n_sources > 0.95 * result.catalog["stype_fit"].ne("").sum()
    assert np.median(np.abs(residual[good])) / pixels.sky_sigma == pytest.approx(0.6745, rel=0.03)
