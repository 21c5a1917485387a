"""Errors of resampled noise, judged by the scatter of many fits; GalSim draws the sources."""

from dataclasses import replace

import known_truth as truth
import numpy as np
import pytest
from scipy.ndimage import convolve1d

from tract7dt.fit.engine import fit
from tract7dt.fit.problem import BandData, FitProblem, Kind, NoiseModel

SHIFTS = (0.0, 0.25, 0.5)
EDGE = 4


def lanczos3(shift):
    "Taps of a resampling by `shift` pixels, of unit sum."
    d = np.arange(-3, 4) - shift
    taps = np.where(np.abs(d) < 3, np.sinc(d) * np.sinc(d / 3), 0)
    return taps / taps.sum()


def resampled(side, shift, rng):
    "Unit noise, resampled by `shift` pixels along both axes."
    noise = rng.normal(0, 1, (side + 2 * EDGE,) * 2)
    for axis in (0, 1) if shift else ():
        noise = convolve1d(noise, lanczos3(shift), axis=axis)
    return noise[EDGE:-EDGE, EDGE:-EDGE]


def covariance(shift):
    "Covariance of its pixels by offset, [13, 13]."
    one = np.correlate(lanczos3(shift), lanczos3(shift), "full")
    return np.outer(one, one)


def noise_model(shift, with_correlation, fwhms=(3.3, 5, 6.6, 10)):
    "What a measurement on blank sky would give: scatter of fluxes under templates of several widths."
    C = covariance(shift)
    C = C / C[6, 6]
    areas, factors = [], []
    y, x = np.mgrid[-30:31, -30:31]
    for fwhm in fwhms:
        template = np.exp(-(x**2 + y**2) / (2 * (fwhm / 2.3548) ** 2))
        power = np.abs(np.fft.fft2(template, (128, 128))) ** 2
        own = np.fft.fftshift(np.fft.ifft2(power).real)[58:71, 58:71]
        areas.append(template.sum() ** 2 / np.sum(template**2))
        factors.append(np.sqrt(np.sum(C * own) / own[6, 6]))
    return NoiseModel(np.array(areas), np.array(factors), C if with_correlation else None)


def pulls(kind, snr, fields, model):
    "Pulls of fluxes [sources, bands], and of positions and ln re."
    flux_pulls, place_pulls, size_pulls = [], [], []
    for seed in range(fields):
        true, side = truth.isolated(kind, seed, 5)
        rng = np.random.default_rng([seed, 9])
        wanted, bands, fluxes = np.exp(rng.uniform(*np.log(snr), len(true))), [], []
        for camera, shift in zip(truth.CAMERAS, SHIFTS):
            plain = replace(camera, gain=1e9, sky=1.0)
            image, flux, _ = truth.photograph(true, wanted, side, plain)
            invvar = np.full(image.shape, 1 / covariance(shift)[6, 6])
            image = image + resampled(side, shift, rng)
            bands.append(BandData(str(shift), image, invvar, truth.psf_stamp(plain), noise=model(shift)))
            fluxes.append(flux)
        result = fit(FitProblem(bands, truth.catalogued(true, rng)))
        flux_pulls.append((result.flux - np.transpose(fluxes)) / result.flux_err)
        place_pulls += [(result.x - true.x) / result.x_err, (result.y - true.y) / result.y_err]
        if kind != Kind.STAR:
            size_pulls.append(np.log(result.re / true.re) * result.re / result.re_err)
    return [
        np.clip(np.concatenate(p), -4, 4) if p else np.ones(0) for p in (flux_pulls, place_pulls, size_pulls)
    ]


@pytest.mark.parametrize("with_correlation", [True, False])
def test_stars_in_resampled_noise(with_correlation):
    flux, place, _ = pulls(Kind.STAR, (5, 20), 24, lambda shift: noise_model(shift, with_correlation))
    assert np.allclose(flux.std(axis=0), 1, atol=0.07)  # 600 stars: 3 %; with 3000 within 0.015
    assert abs(place.std() - 1) < 0.07


def test_without_a_measurement_errors_are_too_small():
    flux, place, _ = pulls(Kind.STAR, (5, 20), 24, lambda shift: None)
    assert flux[:, 0].std() < 1.07 and flux[:, 2].std() > 1.15 and place.std() > 1.1


def test_galaxies_in_resampled_noise():
    flux, place, size = pulls(Kind.EXP, (10, 60), 24, lambda shift: noise_model(shift, True))
    assert np.allclose(flux.std(axis=0), 1, atol=0.09)
    assert abs(place.std() - 1) < 0.08 and abs(size.std() - 1) < 0.1


def test_white_noise_measured_as_such_changes_nothing():
    true, side = truth.pairs((Kind.STAR, Kind.EXP), 1.5, 4.0, 3, 3)
    bands, _, _, start = truth.scene(true, side, (5, 100), 3, truth.CAMERAS)
    white = NoiseModel(np.array([10.0, 100.0]), np.ones(2), np.outer(*[[0, 1, 0]] * 2).astype(float))
    plain = fit(FitProblem(bands, start))
    told = fit(FitProblem([replace(b, noise=white) for b in bands], start))
    for name in ("flux", "flux_err", "flux_err_cond", "chi2", "x_err", "re_err", "ab_err"):
        assert np.allclose(getattr(plain, name), getattr(told, name), rtol=1e-9, equal_nan=True), name


def test_chi_square_and_conditional_errors_do_not_know_of_it():
    true, side = truth.isolated(Kind.STAR, 4, 3)
    bands, _, _, start = truth.scene(true, side, (5, 100), 4, truth.CAMERAS)
    loud = NoiseModel(np.array([10.0, 100.0]), np.array([2.0, 2.0]))
    bands = [replace(b, gain=np.inf) for b in bands]
    plain = fit(FitProblem(bands, start))
    told = fit(FitProblem([replace(b, noise=loud) for b in bands], start))
    assert np.array_equal(plain.chi2, told.chi2) and np.array_equal(plain.flux, told.flux)
    assert np.array_equal(plain.flux_err_cond, told.flux_err_cond)
    assert np.allclose(told.flux_err / plain.flux_err, 2, rtol=0.02)
