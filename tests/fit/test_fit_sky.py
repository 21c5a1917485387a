"""A prior on the sky, the error of a level that was taken off, and what a free sky would want.

GalSim makes the images; the sky is taken off with its true level, plus what a map would get wrong.
"""

from dataclasses import replace

import known_truth as truth
import numpy as np
import pytest

from tract7dt.fit.engine import fit
from tract7dt.fit.problem import FitOptions, FitProblem, Kind


@pytest.fixture(scope="module")
def field():
    "Bands whose true sky is 0, true fluxes, start values: stars and galaxies, some of them close pairs."
    true, side = truth.pairs((Kind.STAR, Kind.EXP), 1.5, 4.0, 11, 4)
    bands, flux, _, start = truth.scene(true, side, (5, 100), 11, truth.CAMERAS)
    flat = [replace(b, image=b.image - c.level) for b, c in zip(bands, truth.CAMERAS)]
    return flat, flux, start


def solve(bands, start, shift=0.0, **changes):
    "A fit of bands with `shift` counts added and some fields changed."
    moved = [replace(band, image=band.image + shift, **changes) for band in bands]
    return fit(FitProblem(moved, start, FitOptions(covariance=True)))


def test_a_very_wide_prior_is_none_and_a_very_narrow_one_holds(field):
    bands, _, start = field
    free, wide = solve(bands, start), solve(bands, start, sky_prior=1e4)
    held, narrow = solve(bands, start, sky_prior=0.0), solve(bands, start, sky_prior=1e-9)
    assert np.abs((wide.flux - free.flux) / free.flux_err).max() < 1e-3
    assert np.abs((narrow.flux - held.flux) / free.flux_err).max() < 1e-3
    assert np.abs(held.sky).max() < 1e-9 and np.array_equal(free.sky_free, free.sky)
    assert np.median(held.flux_err / free.flux_err) < 1  # shapes differ, too, so not each of them


@pytest.mark.parametrize("width", [0.0, 0.0015])
def test_a_free_sky_is_foretold(field, width):
    "A pedestal of a tenth of a sigma is not taken by a held sky; what a free one would take is known."
    bands, _, start = field
    held, free = solve(bands, start, 0.1, sky_prior=width), solve(bands, start, 0.1)
    assert np.abs(held.sky).max() < 0.01
    assert np.allclose(held.sky_free, free.sky, atol=0.02)


@pytest.mark.parametrize("width", [0.0, 0.0015, 0.02])
def test_errors_count_on_the_error_of_the_level(field, width):
    "A level that is off by its error moves every flux by what its error has grown."
    bands, _, start = field
    error = 0.02
    exact = solve(bands, start, sky_prior=width)
    unsure = solve(bands, start, sky_prior=width, sky_error=error)
    moved = 0
    for b in range(len(bands)):
        one = [replace(band, image=band.image + error * (band is bands[b])) for band in bands]
        moved = moved + (solve(one, start, sky_prior=width).flux - exact.flux) ** 2
    moved = np.sqrt(moved)
    grown = np.sqrt(np.maximum(unsure.flux_err**2 - exact.flux_err**2, 0))
    narrow = np.sqrt(max(error**2 - width**2, 0)) / error  # the prior has counted on the rest already
    if not narrow:
        assert not grown.any()
        return
    off = np.abs(grown / (moved * narrow) - 1)  # shapes do not answer quite linearly, of close pairs least so
    assert off.max() < 0.5 and np.quantile(off, 0.8) < 0.1
    assert abs(np.median(grown / moved) / narrow - 1) < 0.02
    assert np.array_equal(unsure.flux, exact.flux)
    assert (unsure.x_err >= exact.x_err).all() and np.allclose(unsure.x_err, exact.x_err, rtol=0.01)
    for b in range(len(bands)):
        assert np.allclose(unsure.flux_cov[:, b, b], unsure.flux_err[:, b] ** 2)


def test_the_error_of_the_level_is_nothing_to_a_free_sky(field):
    bands, _, start = field
    free, unsure = solve(bands, start), solve(bands, start, sky_error=0.1)
    assert np.array_equal(free.flux_err, unsure.flux_err) and np.array_equal(free.sky_err, unsure.sky_err)


def test_priors_do_not_know_units(field):
    bands, _, start = field
    one = solve(bands, start, sky_prior=0.0015, sky_error=0.01)
    unit = 2.0**40
    tiny = [
        replace(
            b,
            image=b.image / unit,
            invvar=b.invvar * np.float32(unit) ** 2,
            gain=b.gain * unit,
            sky_prior=0.0015 / unit,
            sky_error=0.01 / unit,
        )
        for b in bands
    ]
    other = fit(FitProblem(tiny, start))
    assert np.allclose(other.flux * unit, one.flux, rtol=1e-4, atol=1e-2)
    assert np.allclose(other.flux_err * unit, one.flux_err, rtol=1e-4)
    assert np.allclose(other.sky_free * unit, one.sky_free, atol=1e-4)


def test_subfields_hold_the_sky_too(field):
    bands, _, start = field
    whole = solve(bands, start, 0.05, sky_prior=0.0)
    parts = fit(
        FitProblem(
            [replace(b, image=b.image + 0.05, sky_prior=0.0) for b in bands], start, FitOptions(max_group=8)
        )
    )
    assert parts.subfields > 1 and np.abs(parts.sky).max() < 1e-9
    assert np.abs((parts.flux - whole.flux) / whole.flux_err).max() < 0.5
    assert np.allclose(parts.sky_free, 0.05, atol=0.03)


def test_a_band_without_data_has_no_sky(field):
    bands, _, start = field
    lost = [replace(bands[0], invvar=0 * bands[0].invvar, sky_prior=0.0, sky_error=0.1), *bands[1:]]
    result = fit(FitProblem(lost, start))
    assert np.isnan(result.sky[0]) and np.isnan(result.sky_free[0]) and np.isinf(result.sky_err[0])
    assert np.isinf(result.flux_err[:, 0]).all() and np.isfinite(result.flux_err[:, 1:]).all()
