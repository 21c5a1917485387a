"""Few stars: a PSF that varies more than they could tell a rigid model, and bands of one or two stars."""

from types import SimpleNamespace

import galsim
import numpy as np
import pytest
from epsf_scene import FRAME, START, aligned_truth, flux_error, image, isolated_stars, moved_to, together
from small_inputs import Field, rows_at

from tract7dt.epsf.band_fit import fit_band
from tract7dt.epsf.band_task import few_star_psf
from tract7dt.epsf.model import BandPSF, analytic_psf, polynomial_terms
from tract7dt.pipeline.commands import run_epsf
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("epsf")
LINEAR, QUADRATIC = 0.05, 0.04  # of the variation of ln FWHM from the middle to the edge


def star_at(numbers):
    lnf, e1, e2 = numbers
    light = galsim.Moffat(beta=3.3, fwhm=3.5 * np.exp(lnf)).shear(e1=e1, e2=e2)
    return galsim.Convolve(light, galsim.Pixel(1.0))


def errors_of_twelve(seed):
    "True and predicted flux errors at twenty places of a band of twelve stars."
    rng = np.random.default_rng(seed)
    sizes = np.outer([1, 0.5, 0.5], [0, LINEAR, LINEAR, QUADRATIC, QUADRATIC, QUADRATIC])
    coef = sizes * rng.normal(size=(3, 6))
    column, row = rng.integers(30, 970, (2, 12))
    snr = 10 ** rng.uniform(1.8, 2.8, 12)
    numbers = polynomial_terms(column, row, FRAME, 2) @ coef.T
    parts = [isolated_stars(star_at(one), [s], [seed, k]) for k, (one, s) in enumerate(zip(numbers, snr))]
    stars = together([moved_to(part, column[[k]], row[[k]]) for k, part in enumerate(parts)])
    psf = fit_band("m500", FRAME, 2, stars, START).psf
    places = rng.integers(30, 970, (20, 2))
    truth = [image(star_at(polynomial_terms(x, y, FRAME, 2) @ coef.T)) for x, y in places]
    true = [flux_error(psf.stamp(x, y), one) for (x, y), one in zip(places, truth)]
    return np.array(true), np.array([psf.eps_pred(x, y) for x, y in places])


def test_twelve_stars_of_a_varying_psf():
    "With a polynomial of degree 1 errors were 2 %, predicted was half of that."
    true, predicted = np.concatenate([errors_of_twelve(seed) for seed in range(4)], axis=1)
    assert np.sqrt(np.mean(true**2)) < 0.02
    assert 1 / 1.5 < np.sqrt(np.mean((true / predicted) ** 2)) < 1.5


@pytest.mark.parametrize("count, allowed", [(1, 0.04), (2, 0.03)])
def test_one_or_two_stars_make_the_analytic_psf(count, allowed):
    "Better than a width that is off by 10 %, and the predicted error is honest."
    truth, rows = galsim.Convolve(galsim.Moffat(beta=2.6, fwhm=3.2), galsim.Pixel(1.0)), []
    for seed in range(3):
        stars = isolated_stars(truth, np.full(count, 100.0), [seed, count])
        survey = SimpleNamespace(band="m500", fwhm_pix=3.8)
        psf, plain = few_star_psf(survey, FRAME, 1, stars), analytic_psf("m500", FRAME, 1, 3.8)
        assert (psf.source, psf.nstars) == ("analytic", count)
        own, other = (
            flux_error(stamp, aligned_truth(stamp, truth))
            for stamp in (p.stamp(500, 500) for p in (psf, plain))
        )
        rows.append((own, other, psf.eps_pred(500, 500)))
    own, other, predicted = np.array(rows).T
    assert np.sqrt(np.mean(own**2)) < allowed < 0.5 * np.sqrt(np.mean(other**2))
    assert 0.2 < np.sqrt(np.mean((own / predicted) ** 2)) < 1.8


def model_of_nine(folder, types):
    "PSF from nine stars among 55 galaxies without Gaia, and a catalog that calls some of them stars."
    rng, side, sigma = np.random.default_rng(11), 420, 5.0
    grid = np.linspace(30, side - 30, 8)
    x, y = (axis.ravel() + rng.uniform(-6, 6, 64) for axis in np.meshgrid(grid, grid))
    star = np.isin(np.arange(64), rng.choice(64, 9, replace=False))
    flux, re = np.where(star, 1.5e4, 10 ** rng.uniform(3.4, 4, 64)), rng.uniform(2, 4, 64)
    psf, picture = galsim.Moffat(beta=3.3, fwhm=3.3), galsim.ImageD(side, side, xmin=0, ymin=0)
    for k in range(64):
        light = psf if star[k] else galsim.Convolve(galsim.Exponential(half_light_radius=re[k]), psf)
        stamp = galsim.ImageD(71, 71)
        stamp.setCenter(round(x[k]), round(y[k]))
        light.withFlux(flux[k]).drawImage(stamp, scale=1.0, center=galsim.PositionD(x[k], y[k]))
        both = stamp.bounds & picture.bounds
        picture[both] += stamp[both]
    folder.mkdir(exist_ok=True)
    field = Field(folder, ("m400",), (side, side))
    noise = rng.normal(size=(side, side)) * np.sqrt(sigma**2 + np.maximum(picture.array, 0) / 2)
    field.image("m400", (picture.array + noise).astype("f4"), SKYSIG=sigma, SATURATE=1e7, PEEING=3.3)
    told = dict(zip(("right", "all EXP", "galaxies STAR"), (star, star & False, ~star)))[types]
    columns = dict(TYPE=np.where(told, "STAR", "EXP"), Re=re, ELL=0.0, THETA=0.0)
    field.catalog(rows_at(np.column_stack([x, y]), (side, side), **columns))
    cfg = field.cfg(epsf=dict(epsf_ngrid=1, ngrid=1))
    run_epsf(cfg)
    return BandPSF.load(Layout.of(cfg.outputs).psf_model("m400"))


def test_few_stars_among_many_galaxies(tmp_path):
    "The TYPE of the catalog says which they are."
    assert 3.2 < model_of_nine(tmp_path, "right").fwhm(210, 210) < 3.6


def test_galaxies_that_a_catalog_calls_stars_do_no_harm(tmp_path):
    "All is as with a catalog that knows no star, but that its galaxies are points when they are neighbours."
    wrong, silent = (model_of_nine(tmp_path / name[:3], name) for name in ("galaxies STAR", "all EXP"))
    assert np.allclose(wrong.coef, silent.coef, atol=1e-3) and wrong.nstars == silent.nstars
