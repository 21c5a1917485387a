"""Is the engine right? Fluxes, positions, shapes and their errors on simulated fields with the true PSF.

The small versions run always; their limits are the targets plus three standard errors of what is measured
(3 / sqrt(2 N) for the width of N pulls, 3 sigma / sqrt(N) for a mean). The big ones are slow and have no such
slack.
"""

from dataclasses import replace
from functools import lru_cache
from itertools import product

import known_truth as truth
import numpy as np
import pandas as pd
import pytest

from tract7dt.fit.engine import fit
from tract7dt.fit.flags import FitFlag
from tract7dt.fit.parameters import Rules, Start
from tract7dt.fit.problem import BandData, FitOptions, FitProblem, Kind, Sources
from tract7dt.fit.shapes import native_from_catalog
from tract7dt.fit.steps import prior_penalty

BINS = {"5-20": (5, 20), "20-100": (20, 100), ">100": (100, np.inf)}
WIDTHS = {Kind.STAR: (0.95, 1.05), Kind.EXP: (0.9, 1.1)}
SEPARATIONS = ((0.5, 1.0), (1.0, 2.0), (2.0, 3.0))
DEEP = tuple(replace(camera, gain=camera.gain / 10) for camera in truth.CAMERAS)


@lru_cache
def lonely(kind: Kind, fields: int, deep: bool = False) -> pd.DataFrame:
    "Isolated sources of S/N 5 to 500; `deep` has ten times less sky for the same photons."
    with pytest.MonkeyPatch.context() as patch:
        if deep:
            patch.setattr(truth, "CAMERAS", DEEP)
        return pd.concat(
            [truth.measure(*truth.isolated(kind, field), (5, 500), field) for field in range(fields)]
        )


@lru_cache
def blended(
    kinds: tuple[Kind, Kind], separation: tuple[float, float], fields: int, side_count: int
) -> pd.DataFrame:
    return pd.concat(
        [
            truth.measure(*truth.pairs(kinds, *separation, field, side_count), (20, 300), field)
            for field in range(fields)
        ]
    )


def between(table, low, high):
    return table[(table.snr >= low) & (table.snr < high)]


def inside(value, limits, slack=0.0):
    return limits[0] - slack <= value <= limits[1] + slack


@pytest.mark.parametrize("kind", [Kind.STAR, Kind.EXP])
def test_isolated_small(kind):
    table = lonely(kind, 5)
    assert not table.flag.any() and np.isfinite(table.pull).all()
    for name, limits in BINS.items():
        rows = between(table, *limits)
        slack = truth.width_slack(len(rows))
        assert slack < 0.25
        assert inside(rows.pull.std(), WIDTHS[kind], slack), name
        assert inside(np.std([rows.pull_x, rows.pull_y]), (0.9, 1.15), slack), name
        if limits[0] >= 20:
            assert abs(rows.offset.mean()) < 0.005 + truth.mean_slack(rows.offset), name
    if kind == Kind.EXP:
        bright = between(table, 20, np.inf)
        assert abs(bright.d_lnre.median()) < 0.02 + truth.median_slack(bright.d_lnre)
        assert abs(bright.d_ab.median()) < 0.02 + truth.median_slack(bright.d_ab)


@pytest.mark.parametrize(
    "kinds, side_count",
    [((Kind.STAR, Kind.STAR), 5), ((Kind.STAR, Kind.EXP), 4), ((Kind.EXP, Kind.EXP), 3)],
    ids=["star+star", "star+exp", "exp+exp"],
)
def test_pairs_small(kinds, side_count):
    "Marginal errors are right in blends; the conditional ones, put to the same test, fail it by factors."
    table = pd.concat([blended(kinds, separation, 1, side_count) for separation in SEPARATIONS])
    closest = blended(kinds, SEPARATIONS[0], 1, side_count)
    assert inside(table.pull.std(), (0.9, 1.1), truth.width_slack(len(table)))
    assert inside(closest.pull.std(), (0.9, 1.1), truth.width_slack(len(closest)))
    assert closest.pull_cond.std() > 2 and not inside(
        table.pull_cond.std(), (0.9, 1.1), truth.width_slack(len(table))
    )


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.text)
def test_noiseless(kind):
    "Without noise (and without priors, which would pull a little) the truth comes back to a thousandth."
    table = truth.measure(
        *truth.isolated(kind, 0, side_count=2), (300, 3000), 0, noise=False, weak_priors=False
    )
    assert table.offset.abs().max() < 1e-3
    if kind != Kind.STAR:
        assert table.d_lnre.abs().max() < 1e-3 and table.d_ab.abs().max() < 1e-3


def test_a_wrong_psf_is_noticed(monkeypatch):
    "The test of the tests: a PSF 3 % too wide makes fluxes wrong by more than all limits here."
    stamps = truth.psf_stamp
    monkeypatch.setattr(truth, "psf_stamp", lambda camera: stamps(replace(camera, fwhm=1.03 * camera.fwhm)))
    rows = between(truth.measure(*truth.isolated(Kind.STAR, 0), (50, 500), 0), 20, np.inf)
    assert abs(rows.offset.mean()) > 0.005 + truth.mean_slack(rows.offset)


@pytest.mark.parametrize("kind, wider", [(Kind.STAR, 1.0), (Kind.STAR, 1.03), (Kind.EXP, 1.03)])
def test_wings_of_a_slightly_wrong_psf_are_no_unknown_light(kind, wider):
    """Sources of S/N 100 to 3000: without doubt about the model's own wings, one in three stars and one in
    eight galaxies were flagged.
    """
    flags = []
    for field in range(2):
        bands, _, _, start = truth.scene(*truth.isolated(kind, field), (100, 3000), field, truth.CAMERAS)
        blurred = [truth.psf_stamp(replace(camera, fwhm=wider * camera.fwhm)) for camera in truth.CAMERAS]
        flags.append(
            fit(FitProblem([replace(band, psf=psf) for band, psf in zip(bands, blurred)], start)).flags
        )
    assert not np.any(np.bitwise_and(flags, int(FitFlag.NEAR_UNMODELLED)))


BIG = 105
CASES = [
    pytest.param(kind, name, deep, id=f"{kind.text}-{name}{'-deep' * deep}")
    for deep in (False, True)
    for kind in WIDTHS
    for name in BINS
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, name, deep", CASES)
def test_widths_of_flux_pulls(kind, name, deep):
    rows = between(lonely(kind, BIG, deep), *BINS[name])
    assert len(rows) > 2000
    assert inside(rows.pull.std(), WIDTHS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", WIDTHS)
def test_biases(kind):
    table = lonely(kind, BIG)
    for name in ("20-100", ">100"):
        assert abs(between(table, *BINS[name]).offset.mean()) < 0.005
    if kind == Kind.EXP:
        bright = between(table, 20, np.inf)
        assert abs(bright.d_lnre.median()) < 0.02 and abs(bright.d_ab.median()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", BINS)
@pytest.mark.parametrize("kind", WIDTHS)
def test_widths_of_position_pulls(kind, name):
    rows = between(lonely(kind, BIG), *BINS[name])
    assert inside(np.std([rows.pull_x, rows.pull_y]), (0.9, 1.15))


KINDS = {
    "star+star": (Kind.STAR, Kind.STAR),
    "star+exp": (Kind.STAR, Kind.EXP),
    "exp+exp": (Kind.EXP, Kind.EXP),
}


@pytest.mark.slow
@pytest.mark.parametrize("kinds, separation", list(product(KINDS, SEPARATIONS)), ids=str)
def test_widths_in_pairs(kinds, separation):
    table = blended(KINDS[kinds], separation, 8, 5)
    assert inside(table.pull.std(), (0.9, 1.1))
    assert table.pull_cond.std() > 1.25


@pytest.mark.slow
def test_unresolved_galaxies_are_flagged():
    "Two galaxies closer than the seeing: how the light is divided depends on both shapes."
    table = blended(KINDS["exp+exp"], SEPARATIONS[0], 8, 5)
    assert ((table.flag & int(FitFlag.BLENDED)) > 0).mean() > 0.9


@pytest.mark.slow
def test_likelihood_of_unresolved_galaxies():
    """Fluxes held at the truth raise -2 ln p by one for each flux, as they must at the right optimum of the
    right function.
    """
    rises = [rise_at_true_fluxes(field) for field in range(8)]
    assert abs(np.mean(rises) - 1) < 3 * np.sqrt(2 / 150 / len(rises))


def rise_at_true_fluxes(field: int) -> float:
    """Rise of -2 ln p per flux when the fluxes of a field of close pairs are held at the truth; sky noise
    only, which is all that chi-square knows.
    """
    true, side = truth.pairs(KINDS["exp+exp"], *SEPARATIONS[0], field, 5)
    bands, flux, _, start = truth.scene(
        true, side, (20, 300), field, [replace(camera, gain=1e7) for camera in truth.CAMERAS]
    )
    options = FitOptions(footprint_loss=1e-6, dlnp_stop=0.001, max_iters=60, ignore_unmodelled=False)
    held = replace(start, flux_prior_mean=flux, flux_prior_sigma=np.full(flux.shape, 1e-3))
    free, fixed = (minus_two_ln_p(FitProblem(bands, sources, options)) for sources in (start, held))
    return (fixed - free) / flux.size


def minus_two_ln_p(problem: FitProblem) -> float:
    "What the fit has minimised, at its end."
    result, start = fit(problem), Start.of(problem.sources).theta
    shapes = native_from_catalog(result.re, result.ab, result.theta)
    theta = np.column_stack([result.x, result.y, *shapes, result.n, np.nan_to_num(result.gradient)])
    return (
        result.chi2_total.sum()
        + prior_penalty(Rules.make(problem.sources, start, problem.options), theta).sum()
    )


@pytest.mark.slow
def test_errors_of_unresolved_galaxies_with_little_noise():
    """With a tenth of the noise, and started at the truth, the same pairs are within the linear range, and
    the errors are right.
    """
    quiet = tuple(replace(camera, sky=camera.sky / 10, gain=camera.gain * 100) for camera in truth.CAMERAS)
    pulls = []
    for field in range(4):
        true, side = truth.pairs(KINDS["exp+exp"], *SEPARATIONS[0], field, 5)
        bands, flux, _, _ = truth.scene(true, side, (200, 3000), field, quiet)
        result = fit(FitProblem(bands, true, FitOptions(weak_priors=False, dlnp_stop=0.001, max_iters=60)))
        pulls.append((result.flux - flux) / result.flux_err)
    assert inside(np.std(pulls), (0.9, 1.1), 0.05)


@pytest.mark.slow
def test_bright_stars_alone_carry_no_flag():
    """On a dark sky photons make the error 30 times the conditional one, and wings noisy: no sign of a
    neighbour or of unknown light.

    The brightest are so bright that single precision, not the data, limits how well they can be fitted: they
    converge all the same.
    """
    assert not lonely(Kind.STAR, BIG, deep=True).flag.any()


@pytest.mark.slow
def test_sources_may_drift_off_the_image():
    rng, camera = np.random.default_rng(0), truth.CAMERAS[0]
    for _ in range(10):
        image = rng.normal(0, 1, (60, 60))
        image[:, 0] -= 3 * rng.normal()
        band = BandData("m0", image, np.ones_like(image), truth.psf_stamp(camera))
        result = fit(
            FitProblem([band], Sources([0, 1, 1], [-9 - rng.uniform(-2, 3), -10.5, 30], [30.0, 20, 30]))
        )
        assert np.isfinite(result.flux[2]).all() and FitFlag.FAILED not in FitFlag(int(result.flags[2]))
