"""Large fields in pieces, sources missing in the list, covariances, other forms of profiles and PSFs."""

from dataclasses import replace

import numpy as np
import pytest

from tract7dt.fit.engine import fit, fit_bands
from tract7dt.fit.flags import FitFlag, FitStatus
from tract7dt.fit.parameters import Start
from tract7dt.fit.problem import BandData, FitOptions, FitProblem, Kind, Sources
from tract7dt.fit.psf import moffat_psf, psf_cube
from tract7dt.fit.render import Window, render_stack
from tract7dt.fit.subfields import take_sources

FWHMS = (2.9, 3.3)
DENSITY = 30 / 230**2


def field(count, seed, snr=(5, 200), profiles="exact"):
    """A problem with `count` sources at the density of a rich field, their true fluxes and S/N; drawn by the
    engine's renderer.
    """
    rng, size = np.random.default_rng(seed), round(np.sqrt(count / DENSITY))
    psfs = [moffat_psf(fwhm) for fwhm in FWHMS]
    kind = rng.choice(4, count, p=(0.4, 0.3, 0.1, 0.2))
    true = Sources(
        kind,
        rng.uniform(5, size - 5, count),
        rng.uniform(5, size - 5, count),
        re=rng.uniform(1.5, 4, count),
        ab=rng.uniform(0.3, 1, count),
        theta=rng.uniform(-90, 90, count),
        n=rng.uniform(0.8, 4, count),
    )
    ratio = np.exp(rng.uniform(*np.log(snr), count))
    images, flux, frame = np.zeros((2, size, size)), np.zeros((count, 2)), Window(0, size, 0, size)
    grid, cube = psf_cube(psfs, 221)
    for s, theta in enumerate(Start.of(true).theta):
        window = Window.around(theta[0], theta[1], 60)
        template = render_stack(kind[s], theta, window, grid, cube, profiles=profiles)[:, 0].astype(float)
        flux[s] = ratio[s] / np.sqrt((template**2).sum(axis=(1, 2)))
        part = window.clip(frame)
        images[part.slices] += flux[s][:, None, None] * template[part.within(window)]
    images += rng.normal(0, np.sqrt(1 + images / 4))
    begin = replace(
        true,
        x=true.x + rng.normal(0, 0.15, count),
        y=true.y + rng.normal(0, 0.15, count),
        re=true.re * np.exp(rng.normal(0, 0.2, count)),
        theta=true.theta + rng.normal(0, 6, count),
    )
    bands = [
        BandData(f"m{b}", image, np.ones_like(image), psf, 4.0)
        for b, (image, psf) in enumerate(zip(images, psfs))
    ]
    return FitProblem(bands, begin), flux, ratio


def with_options(problem, **options):
    return replace(problem, options=FitOptions(**options))


@pytest.fixture(scope="module")
def large():
    problem, flux, _ = field(120, 5)
    return problem, flux, fit(with_options(problem, max_group=1000)), fit(with_options(problem, max_group=40))


def test_pieces_agree_with_the_whole(large):
    """Cut or not: fluxes within a tenth of a sigma for nearly all sources, positions too, and the same
    verdicts.
    """
    _, _, whole, cut = large
    shift = np.abs((cut.flux - whole.flux) / whole.flux_err).max(axis=1)
    assert whole.subfields == 1 and cut.subfields == 4
    assert np.quantile(shift, 0.9) < 0.1 and shift.max() < 0.5
    assert np.quantile(np.abs(cut.x - whole.x) / whole.x_err, 0.95) < 0.1
    assert np.mean(cut.status != whole.status) < 0.02 and np.mean(cut.flags != whole.flags) < 0.03
    assert np.quantile(np.abs(cut.flux_err / whole.flux_err - 1), 0.95) < 0.03
    assert np.mean(cut.npix != whole.npix) < 0.05


def test_pieces_make_one_model(large):
    problem, _, whole, cut = large
    assert np.abs(cut.model - whole.model).max() < 0.5 and np.abs(cut.model - whole.model).mean() < 0.02
    assert np.allclose(cut.chi2_total, whole.chi2_total, rtol=1e-3)
    assert cut.ignored.shape == problem.shape and np.mean(cut.ignored != whole.ignored) < 0.01
    assert cut.source_sky.shape == (120, 2) and np.allclose(cut.source_sky, whole.sky, atol=0.1)
    assert np.allclose(cut.sky, whole.sky, atol=3 * whole.sky_err.max())


def test_pieces_recover_the_truth(large):
    _, flux, _, cut = large
    pull = (cut.flux - flux) / cut.flux_err
    assert 0.85 < pull.std() < 1.15 and abs(pull.mean()) < 0.25


def test_pieces_keep_hardship_and_priors():
    "Sources nowhere, without numbers, at one place, and flux priors survive being cut."
    problem, _, _ = field(40, 6)
    x, y = problem.sources.x.copy(), problem.sources.y.copy()
    x[0], y[1], x[2], x[5:20], y[5:20] = np.nan, 1e7, -400, 30, 30
    mean, sigma = np.zeros((40, 2)), np.full((40, 2), np.inf)
    mean[30], sigma[30] = 77.0, 1e-3
    sources = replace(problem.sources, x=x, y=y, flux_prior_mean=mean, flux_prior_sigma=sigma)
    result = fit(replace(problem, sources=sources, options=FitOptions(max_group=6)))
    assert [FitStatus(s).text for s in result.status[:3]] == ["failed", "no_data", "no_data"]
    assert np.isnan(result.x[0]) and result.y[1] == 1e7 and result.x[2] == -400
    assert (result.flags[~np.isfinite(result.flux).all(axis=1)] != 0).all() and np.isfinite(
        result.model
    ).all()
    assert np.abs(result.flux[30] - 77).max() < 0.1


def test_two_runs_in_pieces_have_the_same_bytes(large):
    problem, _, _, cut = large
    again = fit(with_options(problem, max_group=40))
    assert again.flux.tobytes() == cut.flux.tobytes() and again.model.tobytes() == cut.model.tobytes()


@pytest.fixture(scope="module")
def missing():
    """Fits of three fields with and without 4 of 34 sources in the list, and distances from the nearest one
    that is missing.
    """
    out = []
    for seed in (103, 108, 111):
        problem, _, ratio = field(34, seed, snr=(3, 300))
        gone = np.isin(np.arange(34), np.argsort(ratio)[-8:-4])
        fewer = replace(problem, sources=take_sources(problem.sources, ~gone))
        x, y = problem.sources.x, problem.sources.y
        distance = np.hypot(x[~gone, None] - x[gone], y[~gone, None] - y[gone]).min(axis=1)
        out.append((fit(problem), fit(fewer), ~gone, distance))
    return out


def test_missing_sources_do_not_stop_others(missing):
    "Who converged still converges; a faint one may end on the other side of a bound."
    changed = 0
    for full, fewer, kept, distance in missing:
        far = distance > 20
        assert far.sum() > 10
        assert np.array_equal(fewer.converged[far], full.converged[kept][far])
        changed += np.sum(fewer.status[far] != full.status[kept][far])
    assert changed <= 1


def test_missing_sources_hardly_change_far_fluxes(missing):
    """The light of the missing ones does not raise the sky: most fluxes far away stay within a tenth of their
    errors.
    """
    shift = np.concatenate(
        [
            np.abs((fewer.flux - full.flux[kept]) / full.flux_err[kept]).max(axis=1)[distance > 20]
            for full, fewer, kept, distance in missing
        ]
    )
    assert np.median(shift) < 0.05 and np.quantile(shift, 0.9) < 0.3
    problem, _, _ = field(34, 103, snr=(3, 300))
    assert not (fit(problem).flags & FitFlag.NEAR_UNMODELLED).any()


def test_ignored_light_does_not_count():
    """A star that is missing in the list is ignored, in one piece or several, and chi-square per pixel stays
    that of the noise.
    """
    problem, _, ratio = field(34, 111, snr=(3, 300))
    fewer = replace(problem, sources=take_sources(problem.sources, ~np.isin(ratio, np.sort(ratio)[-8:-4])))
    whole, cut = fit(fewer), fit(with_options(fewer, max_group=8))
    for result in (whole, cut):
        assert 500 < result.ignored.sum() < 0.1 * result.ignored.size
        assert (result.chi2_total / np.sum(~result.ignored) < 1.5).all()


def test_covariance_between_bands():
    "Scatter of one galaxy's fluxes over many noise images: variances and covariance as promised."
    problem, _, _ = field(1, 3, snr=(40, 41))
    psf, size, rng = problem.bands[0].psf, 51, np.random.default_rng(4)
    true = Sources(Kind.EXP, 25.2, 24.7, re=3.0, ab=0.6, theta=30)
    grid, cube = psf_cube([psf, psf], 135)
    light = 900 * render_stack(Kind.EXP, Start.of(true).theta[0], Window(0, size, 0, size), grid, cube)[:, 0]
    fluxes, covariances = [], []
    for _ in range(150):
        bands = [
            BandData(f"m{b}", image + rng.normal(0, 1, image.shape), np.ones_like(image), psf)
            for b, image in enumerate(light)
        ]
        result = fit(FitProblem(bands, true, FitOptions(covariance=True, weak_priors=False)))
        fluxes.append(result.flux[0])
        covariances.append(result.flux_cov[0])
    promised = np.mean(covariances, axis=0)
    correlation = promised[0, 1] / promised[0, 0]
    assert np.allclose(np.std(fluxes, axis=0), np.sqrt(np.diag(promised)), rtol=0.2)
    assert correlation > 0.2 and abs(np.corrcoef(np.transpose(fluxes))[0, 1] - correlation) < 0.2


def test_covariance_without_data():
    problem, _, _ = field(6, 3)
    blank = replace(problem.bands[1], invvar=np.zeros_like(problem.bands[1].invvar))
    result = fit(replace(problem, bands=(problem.bands[0], blank), options=FitOptions(covariance=True)))
    assert np.isfinite(result.flux_cov[:, 0, 0]).all() and np.isnan(result.flux_cov[:, 0, 1]).all()
    assert np.isinf(result.flux_cov[:, 1, 1]).all()


def test_band_by_band():
    problem, flux, _ = field(12, 7)
    results = fit_bands(problem)
    assert len(results) == 2 and all(r.flux.shape == (12, 1) for r in results)
    pull = np.concatenate([(r.flux[:, 0] - flux[:, b]) / r.flux_err[:, 0] for b, r in enumerate(results)])
    assert np.abs(np.median(pull)) < 0.6 and np.quantile(np.abs(pull), 0.8) < 2.5


def test_mixture_profiles():
    "Mixtures fit images made of mixtures, and differ little from exact laws on images made of these."
    problem, flux, _ = field(20, 8, snr=(20, 200), profiles="mixture")
    result = fit(with_options(problem, profiles="mixture"))
    assert 0.75 < ((result.flux - flux) / result.flux_err).std() < 1.25
    problem, flux, _ = field(20, 8, snr=(50, 200))
    ratio = fit(with_options(problem, profiles="mixture")).flux / fit(problem).flux
    assert np.abs(ratio - 1).max() < 0.03
