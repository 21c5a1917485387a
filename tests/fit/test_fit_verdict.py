"""What fluxes are worth: each rule fires where the model is wrong in its way, and not where it is right.

GalSim draws the scenes; what is wrong with a list or an image is put there by hand.
"""

from dataclasses import replace

import known_truth as truth
import numpy as np
import pytest

from tract7dt.fit.engine import fit, fit_bands
from tract7dt.fit.flags import HARD_FLAGS, BandFlag, FitFlag
from tract7dt.fit.problem import FitOptions, FitProblem, Kind, NoiseModel
from tract7dt.fit.verdict import odd_fluxes

SKY_HELD = dict(sky_prior=0.0015)


def field(kind=Kind.STAR, snr=(50, 200), seed=4):
    "Sixteen sources of a kind, all apart, on a sky of 0: true sources, bands, start values."
    true, side = truth.isolated(kind, seed, 4)
    bands, _, _, start = truth.scene(true, side, snr, seed, truth.CAMERAS)
    flat = [replace(b, image=b.image - c.level, **SKY_HELD) for b, c in zip(bands, truth.CAMERAS)]
    return true, flat, start


def distance(bands, x, y):
    "Distances of all pixels from a place."
    rows, columns = np.indices(bands[0].image.shape)
    return np.hypot(columns - x, rows - y)


def has(bits, flag):
    return (bits & int(flag)) != 0


def only(where, s, count=16):
    "Whether `where` [S] holds for source `s` alone."
    return np.array_equal(where, np.arange(count) == s)


@pytest.fixture(scope="module")
def stars():
    return field()


@pytest.mark.parametrize("kind", [Kind.STAR, Kind.EXP, Kind.SERSIC])
def test_right_ones_are_left_alone(kind):
    _, bands, start = field(kind, (10, 300))
    result = fit(FitProblem(bands, start))
    assert not has(result.flags, HARD_FLAGS | FitFlag.NEAR_UNMODELLED).any()
    assert (result.band_flags == 0).all()
    assert np.nanmedian(result.worth.misfit) < 0.03


def test_light_in_the_aperture_is_that_of_the_data(stars):
    true, bands, start = stars
    result = fit(FitProblem(bands, start))
    for b, (band, camera) in enumerate(zip(bands, truth.CAMERAS)):
        radius = 1.5 * result.worth.fwhm[0, b]
        assert abs(result.worth.fwhm[0, b] / camera.fwhm - 1) < 0.05  # the pixel widens it a little
        for s in range(16):
            inside = distance(bands, result.x[s], result.y[s]) < radius
            assert (
                abs(result.worth.apflux[s, b] - (band.image - result.sky[b])[inside].sum())
                < 1e-3 * (result.flux[s, b])
            )


def test_a_galaxy_typed_star_is_extended():
    _, bands, start = field(Kind.EXP, (80, 200))
    result = fit(FitProblem(bands, replace(start, kind=np.where(np.arange(16) == 3, 0, 1))))
    assert only(has(result.flags, FitFlag.EXTENDED), 3)
    assert has(result.band_flags[3], BandFlag.LIGHT_LEFT).all()
    assert has(result.band_flags[3], BandFlag.MISFIT).any()


def test_a_core_that_saturates_in_one_band_is_a_misfit_there(stars):
    true, bands, start = stars
    top = bands[1].image[distance(bands, true.x[6], true.y[6]) < 3].max()
    core = (distance(bands, true.x[6], true.y[6]) < 6) & (bands[1].image > 0.3 * top)
    clipped = [*bands]
    clipped[1] = replace(bands[1], image=np.where(core, 0.3 * top, bands[1].image))
    result = fit(FitProblem(clipped, start))
    assert only(has(result.band_flags[:, 1], BandFlag.MISFIT), 6)
    assert not result.band_flags[:, [0, 2]].any()


def test_a_shift_of_a_band_is_no_misfit():
    "A quarter of a pixel in one band of three: a dipole in each source, and fluxes that are right."
    true, bands, start = field(snr=(50, 100))
    images = truth.scene(replace(true, x=true.x + 0.25), 160, (50, 100), 4, truth.CAMERAS)[0]
    moved = [*bands[:2], replace(images[2], image=images[2].image - truth.CAMERAS[2].level, **SKY_HELD)]
    result = fit(FitProblem(moved, start))
    assert not has(result.band_flags, BandFlag.MISFIT | BandFlag.LIGHT_LEFT).any()


def test_a_sky_that_is_off_around_a_source(stars):
    true, bands, start = stars
    lifted = [*bands]
    lifted[2] = replace(bands[2], image=bands[2].image + 3.0 * (distance(bands, true.x[9], true.y[9]) < 19))
    result = fit(FitProblem(lifted, start))
    assert only(has(result.band_flags[:, 2], BandFlag.SKY_LEVEL), 9)


def test_who_moved_far_although_bright_has_drifted(stars):
    true, bands, start = stars
    right = fit(FitProblem(bands, start))
    best = int(np.argmax((right.flux / right.flux_err).max(axis=1)))
    result = fit(FitProblem(bands, replace(start, x=start.x + 3.5 * (np.arange(16) == best))))
    assert only(has(result.flags, FitFlag.DRIFTED), best)
    together = fit(FitProblem(bands, replace(start, x=start.x + 3.5)))  # the catalog is off, nobody drifted
    assert not has(together.flags, FitFlag.DRIFTED).any()


def test_a_star_that_began_as_a_large_galaxy_has_collapsed(stars):
    _, bands, start = stars
    kind, re = np.where(np.arange(16) < 2, 1, 0), np.where(np.arange(16) == 0, 8.0, 1.0)
    result = fit(FitProblem(bands, replace(start, kind=kind, re=re, ab=np.ones(16))))
    assert only(has(result.flags, FitFlag.COLLAPSED), 0)
    assert not has(result.flags, HARD_FLAGS)[1]  # a star typed EXP from a small radius is right


def test_a_neighbour_that_is_not_in_the_list():
    true, side = truth.pairs((Kind.STAR, Kind.STAR), 1.6, 1.8, 3, 3)
    bands, flux, _, start = truth.scene(true, side, (60, 100), 3, truth.CAMERAS)
    flat = [replace(b, image=b.image - c.level, **SKY_HELD) for b, c in zip(bands, truth.CAMERAS)]
    names = ("x", "y", "re", "ab", "theta", "n", "kind")
    listed = np.arange(18) != 13  # the companion of the fifth
    short = type(start)(**{name: getattr(start, name)[listed] for name in names})
    result = fit(FitProblem(flat, short))
    assert only(has(result.flags, FitFlag.NEAR_UNMODELLED), 4, 17)


def test_parts_bands_and_units_tell_the_same(stars):
    _, bands, start = stars
    whole, cut = (fit(FitProblem(bands, start, FitOptions(max_group=n))) for n in (80, 6))
    np.testing.assert_allclose(cut.worth.apflux, whole.worth.apflux, rtol=0.01)
    np.testing.assert_allclose(cut.worth.misfit, whole.worth.misfit, atol=0.02)
    alone = fit_bands(FitProblem(bands, start))
    assert [r.band_flags.shape for r in alone] == [(16, 1)] * 3
    np.testing.assert_allclose(alone[1].worth.apflux, whole.worth.apflux[:, 1:2], rtol=0.02)
    small = [replace(b, image=b.image * 1e-15, invvar=b.invvar * 1e30, gain=np.inf) for b in bands]
    small = fit(FitProblem([replace(b, sky_prior=b.sky_prior * 1e-15) for b in small], start))
    plain = fit(FitProblem([replace(b, gain=np.inf) for b in bands], start))
    np.testing.assert_allclose(small.worth.apflux, plain.worth.apflux * 1e-15, rtol=1e-3)


def test_a_flux_is_odd_only_where_its_core_is_missed():
    flux = np.exp(np.random.default_rng(1).normal(8, 1, (40, 1)) + np.linspace(0, 2, 7))
    flux[5, 3] *= 0.4
    misfit = np.zeros(flux.shape)
    assert not odd_fluxes(flux, 0.01 * flux, misfit, np.arange(7)).any()
    misfit[5] = 0.2
    assert np.argwhere(odd_fluxes(flux, 0.01 * flux, misfit, np.arange(7))).tolist() == [[5, 3]]
    assert not odd_fluxes(flux, 0.3 * flux, misfit, np.arange(7)).any()


def test_a_flux_prior_that_the_pixels_contradict_is_too_bright(stars):
    "Two and a half times the flux, known to half a per cent: what comes out has more light than the data."
    true, bands, start = stars
    free = fit(FitProblem(bands, start))
    prior = dict(flux_prior_mean=2.5 * free.flux, flux_prior_sigma=0.0015 * free.flux)
    drawn = fit(FitProblem(bands, replace(start, **prior)))
    far = drawn.flux > 1.15 * free.flux
    assert far.mean() > 0.3 and has(drawn.band_flags[far], BandFlag.TOO_BRIGHT).mean() > 0.9
    honest = replace(start, flux_prior_mean=free.flux, flux_prior_sigma=0.005 * free.flux)
    assert not has(fit(FitProblem(bands, honest)).band_flags, BandFlag.TOO_BRIGHT).any()


def test_noise_that_the_weights_do_not_know_is_no_misfit():
    "Faint stars on a sky whose noise is twice what the weights say, which blank sky has told."
    true, bands, start = field(Kind.STAR, (25, 50))
    rng = np.random.default_rng(3)
    louder = [
        replace(
            b,
            image=b.image + rng.normal(size=b.image.shape) * np.sqrt(3 / b.invvar),
            noise=NoiseModel(np.array([1.0, 100.0]), np.array([2.0, 2.0])),
        )
        for b in bands
    ]
    result = fit(FitProblem(louder, start))
    assert has(result.band_flags, BandFlag.MISFIT).mean() < 0.03
    deaf = fit(FitProblem([replace(b, noise=None) for b in louder], start))
    assert has(deaf.band_flags, BandFlag.MISFIT).mean() > 0.1
