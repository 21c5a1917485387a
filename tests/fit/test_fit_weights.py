"""Weights with the photons of the model: no bias with the right PSF, honest errors with PSFs that differ."""

from dataclasses import replace

import galsim
import numpy as np
import pytest

from tract7dt.fit.engine import fit, fit_bands
from tract7dt.fit.forced import forced_photometry
from tract7dt.fit.problem import BandData, FitOptions, FitProblem, Kind, PixelPSF, PSFError, Sources

FWHM, GAIN, STEP, SIDE = 3.4, 2.0, 44, 4  # pixels, electrons per count, pixels between sources, sources a row
SIZE = STEP * SIDE
HALF = 25
SPREAD = 0.015  # of ln FWHM from star to star


def moffat(fwhm):
    "The profile of a star, of unit flux."
    return galsim.Moffat(beta=3.0, fwhm=fwhm)


def drawn(profile, size, dx=0.0, dy=0.0):
    "Pixels of a profile that is `dx`, `dy` pixels off the middle of a square."
    return profile.shift(dx, dy).drawImage(nx=size, ny=size, scale=1.0).array.astype(float)


STAMP = drawn(moffat(FWHM), 2 * HALF + 1)
WIDER = (drawn(moffat(FWHM * 1.01), 2 * HALF + 1) - drawn(moffat(FWHM / 1.01), 2 * HALF + 1)) / (
    2 * np.log(1.01)
)
ERRING = PSFError(shape=np.diag([SPREAD, 0, 0]) ** 2, slopes=np.stack([WIDER, 0 * WIDER, 0 * WIDER]))


def scene(rng, signal, spread, re=None):
    "An image of stars (or galaxies of radius `re`) of equal signal on a grid; its sources and their fluxes."
    image, half = np.zeros((SIZE, SIZE)), HALF
    grid = np.arange(SIDE) * STEP + STEP // 2
    x, y = (a.ravel().astype(float) for a in np.meshgrid(grid, grid))
    dx, dy = rng.uniform(-0.5, 0.5, (2, len(x)))
    flux = signal / np.sqrt(np.sum(STAMP**2))
    for k in range(len(x)):
        psf = moffat(FWHM * np.exp(rng.normal(0, spread)))
        light = psf if re is None else galsim.Convolve(galsim.Exponential(half_light_radius=re), psf)
        stamp, (cx, cy) = flux * drawn(light, 2 * half + 1, dx[k], dy[k]), (int(x[k]), int(y[k]))
        y0, y1, x0, x1 = (
            max(cy - half, 0),
            min(cy + half + 1, SIZE),
            max(cx - half, 0),
            min(cx + half + 1, SIZE),
        )
        image[y0:y1, x0:x1] += stamp[y0 - cy + half : y1 - cy + half, x0 - cx + half : x1 - cx + half]
    image += rng.normal(0, 1, image.shape) * np.sqrt(1 + image / GAIN)
    kind = Kind.STAR if re is None else Kind.EXP
    return image, Sources([kind] * len(x), x + dx, y + dy, re=re or 1.0, ab=1.0), flux


def pulls_of(signal, spread, error, seed=1, repeats=4, re=None):
    "Fluxes over the truth less 1, and over their errors, of stars in several images."
    rng, off, pulls = np.random.default_rng(seed), [], []
    for _ in range(repeats):
        image, sources, flux = scene(rng, signal, spread, re)
        band = BandData("r", image, np.ones_like(image), PixelPSF(STAMP), GAIN, 0.0, psf_error=error)
        found = fit(FitProblem([band], sources, FitOptions(weak_priors=False)))
        off.append(found.flux[:, 0] / flux - 1)
        pulls.append((found.flux[:, 0] - flux) / found.flux_err[:, 0])
    return np.concatenate(off), np.concatenate(pulls)


@pytest.mark.parametrize("signal", [30, 1000])
def test_with_the_right_psf_fluxes_have_no_bias_and_errors_are_right(signal):
    off, pulls = pulls_of(signal, 0.0, PSFError())
    assert abs(pulls.mean()) < 3 / np.sqrt(len(pulls))
    assert abs(np.mean(off)) < 3 * off.std() / np.sqrt(len(off))
    assert 0.8 < pulls.std() < 1.2  # 64 stars: 9 %


@pytest.mark.parametrize("signal", [100, 1000])
def test_psfs_that_differ_from_star_to_star_are_in_the_errors(signal):
    _, pulls = pulls_of(signal, SPREAD, ERRING, seed=2)
    assert 0.75 < pulls.std() < 1.25
    if signal == 100:
        _, blind = pulls_of(signal, SPREAD, PSFError(), seed=2)
        assert blind.std() > pulls.std()


def test_photon_weights_make_bright_stars_forgive_a_wrong_width():
    image, sources, flux = scene(np.random.default_rng(3), 1000, 0.0)
    narrow = PixelPSF(drawn(moffat(FWHM / 1.03), 2 * HALF + 1))
    band = BandData("r", image, np.ones_like(image), narrow, GAIN, 0.0)
    off = {
        photons: fit(FitProblem([band], sources, FitOptions(photon_weights=photons))).flux.mean() / flux - 1
        for photons in (False, True)
    }
    assert abs(off[True]) < 0.5 * abs(off[False]) and off[False] < -0.015


def test_without_photons_and_profile_error_nothing_changes():
    image, sources, _ = scene(np.random.default_rng(4), 200, 0.0)
    band = BandData("r", image, np.ones_like(image), PixelPSF(STAMP))
    one, two = (fit(FitProblem([band], sources, FitOptions(photon_weights=p))) for p in (True, False))
    assert one.flux.tobytes() == two.flux.tobytes() and one.flux_err.tobytes() == two.flux_err.tobytes()


def test_conditional_errors_are_those_of_the_sky_whatever_the_weights():
    image, sources, _ = scene(np.random.default_rng(5), 500, 0.0)
    band = BandData("r", image, np.ones_like(image), PixelPSF(STAMP), GAIN, 0.0, psf_error=ERRING)
    one, two = (fit(FitProblem([band], sources, FitOptions(photon_weights=p))) for p in (True, False))
    np.testing.assert_allclose(one.flux_err_cond, two.flux_err_cond, rtol=2e-3)
    assert (one.flux_err <= two.flux_err * 1.001).all() and (one.flux_err > one.flux_err_cond).all()
    np.testing.assert_allclose(one.chi2_total, two.chi2_total, rtol=0.05)


def test_single_bands_subfields_and_forced_photometry_have_the_same_errors():
    rng = np.random.default_rng(6)
    image, sources, _ = scene(rng, 300, SPREAD)
    band = BandData("r", image, np.ones_like(image), PixelPSF(STAMP), GAIN, 0.0, psf_error=ERRING)
    problem = FitProblem([band], sources, FitOptions(weak_priors=False))
    whole, (alone,) = fit(problem), fit_bands(problem)
    cut = fit(replace(problem, options=replace(problem.options, max_group=4)))
    np.testing.assert_allclose(alone.flux_err, whole.flux_err, rtol=1e-6)
    np.testing.assert_allclose(cut.flux_err, whole.flux_err, rtol=0.02)
    np.testing.assert_allclose(cut.flux, whole.flux, rtol=2e-3)
    held = forced_photometry(
        {"r": image}, {"r": 1.0}, {"r": STAMP}, sources, {"r": GAIN}, sky_priors={"r": 0.0}
    )
    np.testing.assert_allclose(held.flux, whole.flux, rtol=5e-3)


@pytest.mark.parametrize("re", [2.0, 5.0])
def test_galaxies_have_no_bias_and_their_sizes_honest_errors(re):
    rng, pulls = np.random.default_rng(7), []
    for _ in range(2):
        image, sources, flux = scene(rng, 300, SPREAD, re)
        band = BandData("r", image, np.ones_like(image), PixelPSF(STAMP), GAIN, 0.0, psf_error=ERRING)
        found = fit(FitProblem([band], sources, FitOptions(weak_priors=False)))
        radius, error = found.re * np.sqrt(found.ab), found.re_err
        pulls.append([(found.flux[:, 0] - flux) / found.flux_err[:, 0], (found.x - sources.x) / found.x_err])
        assert abs(np.median(radius / re) - 1) < 0.03 and (error > 0).all()
    pulls = np.array(pulls).transpose(1, 0, 2).reshape(2, -1)
    if re == 2.0:  # a light cut at the edge of its stamp of 51 pixels is missing beyond 5 radii
        assert (np.abs(pulls.mean(axis=1)) < 0.6).all()
    assert (pulls.std(axis=1) < 1.4).all()
