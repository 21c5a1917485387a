"""A large source has a patch of its own, and the patches after it draw it as it was fitted."""

from dataclasses import replace

import galsim
import numpy as np
import pytest
from astropy.io import fits
from small_inputs import Field, rows_at

from tract7dt.core.errors import UserError
from tract7dt.fit.engine import fit
from tract7dt.fit.problem import BandData, BandOffset, FitOptions, FitProblem, Kind, PixelPSF, Sources
from tract7dt.pipeline import run_patches as module
from tract7dt.pipeline import stages
from tract7dt.pipeline.commands import run
from tract7dt.results.merge import read_catalog
from tract7dt.workdir.layout import Layout

SIZE, RE, FLUX, PLACE, FWHM = 160, 12.0, 4e4, (81.3, 60.6), 3.0
STARS = np.array([(30.2, 30.7), (120.4, 110.1), (100.5, 70.2), (40.8, 125.3)])


def drawn(re, x, y, stars=0.0):
    "A disc, and stars of one flux; noiseless."
    psf, image = galsim.Gaussian(fwhm=FWHM), galsim.ImageD(SIZE, SIZE)
    image.setOrigin(0, 0)
    disc = galsim.Convolve(galsim.Exponential(half_light_radius=re, flux=FLUX), psf)
    total = disc.drawImage(image, scale=1.0, center=galsim.PositionD(x, y)).array.copy()
    for place in STARS if stars else ():
        total += psf.withFlux(stars).drawImage(image, scale=1.0, center=galsim.PositionD(*place)).array
    return total


def stamp():
    image = galsim.ImageD(25, 25)
    return galsim.Gaussian(fwhm=FWHM).drawImage(image, scale=1.0).array.copy()


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "draw", lambda *what: None)
    field = Field(tmp_path, shape=(SIZE, SIZE))
    for seed, band in enumerate(field.bands):
        noise = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
        field.image(band, (drawn(RE, *PLACE, stars=4e3) + 2 * noise).astype("f4"), SKYSIG=2.0, SATURATE=1e6)
        fits.writeto(tmp_path / f"psf_{band}.fits", stamp())
    columns = dict(TYPE=["EXP"] + 4 * ["STAR"], Re=[RE] + 4 * [np.nan], ELL=0.0, THETA=0.0)
    field.catalog(rows_at([PLACE, *STARS], (SIZE, SIZE), **columns))
    epsf = dict(epsf_ngrid=1, ngrid=2, final_psf_size=25, psf_fits=str(tmp_path / "psf_{band}.fits"))
    quiet = dict(no_cutouts=True, no_patch_overview=True, max_workers=1)
    return field.cfg(epsf=epsf, patch_run=quiet)


def fluxes(cfg):
    table = read_catalog(Layout.of(cfg.outputs).final_catalog).set_index("ID")
    return table, table[[f"FLUX_{band}_fit" for band in ("m400", "m425")]].to_numpy(float)


def test_where_the_region_fails_the_patch_measures(cfg, monkeypatch):
    "The failure is told, and every source has one row with its flux all the same."

    def only_small(payload, psfs, cfg):
        if payload.patch.source:
            raise RuntimeError("no luck")
        return fit_patch(payload, psfs, cfg)

    fit_patch = module.fit_patch
    monkeypatch.setattr(module, "fit_patch", only_small)
    try:
        run(cfg)
    except UserError as told:
        assert "1 patch" in str(told)
    table, flux = fluxes(cfg)
    assert table.index.is_unique and table.loc["00000"].patch_tag == "r00_c00_pr00_pc01"
    assert np.abs(flux[0] / FLUX - 1).max() < 0.05 and np.abs(flux[1:] / 4e3 - 1).max() < 0.05
    monkeypatch.setattr(module, "fit_patch", fit_patch)
    run(cfg)
    table, flux = fluxes(cfg)
    assert table.index.is_unique and table.loc["00000"].patch_tag == "r00_c00_pr02_pc00"
    assert np.abs(flux[0] / FLUX - 1).max() < 0.02 and np.abs(flux[1:] / 4e3 - 1).max() < 0.05


def test_a_held_galaxy_keeps_the_change_of_its_radius_and_its_offsets():
    "A disc that is smaller in the red band and half a pixel off there: nothing is left of it."
    wavelengths, gradient, moves = (400.0, 800.0), -0.4, (-0.25, 0.25)
    bands, noise = [], np.random.default_rng(3).normal(size=(2, SIZE, SIZE))
    for b, (wavelength, move) in enumerate(zip(wavelengths, moves)):
        re = RE * (wavelength / np.sqrt(400.0 * 800.0)) ** gradient
        image = drawn(re, PLACE[0] + move, PLACE[1]) + noise[b]
        offset = BandOffset(np.array([[move], [0.0]]), (SIZE, SIZE))
        data = BandData(str(b), image, np.ones_like(image), PixelPSF(stamp()), 1e9)
        bands.append(replace(data, wavelength=wavelength, offset=offset))
    held = dict.fromkeys(("fix_position", "fix_size", "fix_shape", "fix_n"), True)
    prior = dict(flux_prior_mean=np.full((1, 2), FLUX), flux_prior_sigma=np.full((1, 2), 1e-3))
    chi2 = []
    for g in (gradient, 0.0):
        source = Sources([Kind.EXP], [PLACE[0]], [PLACE[1]], re=RE, ab=1.0, gradient=g, **held, **prior)
        chi2.append(fit(FitProblem(bands, source, FitOptions(ignore_unmodelled=False))).chi2_total / SIZE**2)
    assert (chi2[0] < 1.05).all() and (chi2[1] > 1.5).all()
