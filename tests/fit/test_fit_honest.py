"""Convergence is what fresh derivatives say, units do not matter, and masks of one band are no structure.

GalSim makes the images.
"""

from dataclasses import replace

import numpy as np
import pytest
from test_fit_engine import FWHMS, PSFS, SIZE, perturbed, simulate, spread

from tract7dt.fit import optimise
from tract7dt.fit.engine import fit
from tract7dt.fit.footprints import Pixels, make_footprint, rough_sky
from tract7dt.fit.normal import Plan, evaluate, source_stack
from tract7dt.fit.parameters import Rules, Start, free_parameters
from tract7dt.fit.problem import BandData, FitOptions, FitProblem, Kind, Sources
from tract7dt.fit.steps import expected_gain, newton_step, quadratic
from tract7dt.fit.warm_start import warm_start


def problem_of(images, sources, weights=None, **options):
    weights = np.ones_like(images) if weights is None else weights
    bands = [
        BandData(f"m{b}", image, w, PSFS[b % 2], gain=2.0)
        for b, (image, w) in enumerate(zip(images, weights))
    ]
    return FitProblem(bands, sources, FitOptions(**options))


def plan_of(problem):
    "Plan, rules and start parameters, as the fit makes them."
    pixels, theta = Pixels.of(problem), Start.of(problem.sources).theta
    prints = [
        make_footprint(kind, t, pixels, *rough_sky(pixels), 0.05)
        for kind, t in zip(problem.sources.kind, theta)
    ]
    plan = Plan.make(problem, pixels, free_parameters(problem.sources, np.ones(len(theta), bool)), prints)
    return plan, Rules.make(problem.sources, theta, problem.options), theta


def test_gains_are_those_of_fresh_derivatives(monkeypatch):
    """A very bright star with a PSF that is 2 % too narrow: what counts as converged also does with
    derivatives made at the end.

    With derivatives of some steps before, gains of hundreds went unseen under the residual of the star.
    """
    true = Sources(
        [0, 0, 1, 3, 0],
        [60.2, 66, 57, 80, 40],
        [60.7, 63, 70, 50, 40],
        re=[1, 1, 2, 3, 1],
        ab=0.6,
        theta=30,
        n=2.0,
    )
    flux = np.array([3e6, 1e4, 2e4, 3e4, 1e5])[:, None] * [1.0, 1.2]
    images = simulate(true, flux, fwhms=np.multiply(FWHMS, 1.02)) + np.random.default_rng(1).normal(
        size=(2, SIZE, SIZE)
    )
    ends, finish = [], optimise.finish
    monkeypatch.setattr(optimise, "finish", lambda end: ends.append(end) or finish(end))
    for seed in range(3):
        fit(problem_of(images, perturbed(true, np.random.default_rng(seed))))
    for end in ends:
        plan, state = end.plan, end.state
        quad = quadratic(plan, evaluate(plan, state.theta), end.setup.rules, end.frozen)
        fresh = expected_gain(quad, newton_step(quad, np.zeros(len(end.gain))))
        bright = ~end.frozen & (optimise.own_light(plan, state) > optimise.BRIGHT)
        small = np.maximum(0.02, optimise.PRECISION**2 * optimise.own_light(plan, state))
        assert bright.any() and (fresh < small)[bright & (end.gain < 0.01)].all()


def test_a_source_whose_step_is_rejected_keeps_its_derivatives():
    "The state knows where derivatives were made, also after a step that was undone for one source."
    true = spread(4, 1, kind=[Kind.STAR, Kind.EXP, Kind.STAR, Kind.EXP])
    images = simulate(true, np.full((4, 2), 3000.0)) + np.random.default_rng(2).normal(size=(2, SIZE, SIZE))
    plan, rules, theta = plan_of(problem_of(images, replace(true, x=true.x + [0, 0, 0.3, 0.3])))
    target = theta + np.outer([2.0, 2.0, -0.3, -0.3], [1, 0, 0, 0, 0, 0, 0])
    step = optimise.Step(target, np.ones(4, bool), np.ones(4, bool), optimise.Damping.start(4))
    state, rejected = optimise.accept(plan, rules, evaluate(plan, theta), step)
    assert rejected.tolist() == [True, True, False, False] and np.array_equal(state.theta[:2], theta[:2])
    assert np.array_equal(state.linearised_at, np.where(rejected[:, None], theta, target))
    for s in range(4):
        assert np.array_equal(state.stacks[s][:, 1:], source_stack(plan, state.linearised_at, s)[:, 1:])
    later = evaluate(plan, state.theta + 0.01, state, np.arange(4) < 2, np.arange(4) < 1)
    assert np.array_equal(later.linearised_at[1:], state.linearised_at[1:]) and np.array_equal(
        later.linearised_at[0], later.theta[0]
    )


@pytest.mark.parametrize("power", [-60, 60])
def test_units_do_not_matter(power):
    """Noise of 1e-18 or 1e18, where sums of single-precision weights leave their range; with a flux prior,
    and bands enough for a warm start.
    """
    true, unit = spread(9, 4, kind=np.resize([0, 1, 3], 9)), 2.0**power
    images = np.tile(
        simulate(true, np.geomspace(300, 3e4, 9)[:, None] * [1.0, 1.2]), (3, 1, 1)
    ) + np.random.default_rng(3).normal(size=(6, SIZE, SIZE))
    sigma = np.where(np.arange(9)[:, None] == 2, 1.0, np.full((9, 6), np.inf))
    start = replace(
        perturbed(true, np.random.default_rng(5)),
        flux_prior_mean=np.full((9, 6), 700.0),
        flux_prior_sigma=sigma,
    )
    one = fit(problem_of(images, start, covariance=True))
    tiny = replace(start, flux_prior_mean=start.flux_prior_mean * unit, flux_prior_sigma=sigma * unit)
    problem = problem_of(images * unit, tiny, np.full(images.shape, unit**-2), covariance=True)
    two = fit(replace(problem, bands=[replace(band, gain=2.0 / unit) for band in problem.bands]))
    for name in ("flux", "flux_err", "flux_err_cond", "sky", "sky_err", "source_sky", "model"):
        assert np.allclose(getattr(two, name) / unit, getattr(one, name), rtol=1e-4, atol=1e-4)
    assert np.allclose(two.flux_cov / unit**2, one.flux_cov, rtol=1e-3)
    assert (
        np.allclose(two.chi2, one.chi2, rtol=1e-3)
        and np.array_equal(two.status, one.status)
        and np.array_equal(two.flags, one.flags)
    )


def test_weights_beyond_single_precision_are_named():
    "Nobody gets a result of infinite errors because the unit was too small to be stored."
    with pytest.raises(ValueError, match="band m7: .*range of single precision"):
        BandData("m7", np.ones((5, 5)) * 1e-21, np.full((5, 5), 1e42), PSFS[0])


def test_masks_of_one_band_are_no_structure():
    """The band with most of the light is masked next to the sources: at the truth the warm start stays.

    Where the mean over the bands that are left was taken there, it went by a pixel. A source with too little
    left sits out.
    """
    true = spread(9, 6, kind=np.resize([Kind.STAR, Kind.EXP], 9), n=1.0)
    images = (
        np.concatenate([simulate(true, np.full((9, 2), 1000.0), fwhms=FWHMS[:1] * 2)] * 2)
        * np.array([8, 1, 1, 1])[:, None, None]
    )
    weights = np.ones_like(images)
    for s in range(8):
        column, row = int(true.x[s]), int(true.y[s])
        weights[0, row - 12 : row + 13, column + 2 : column + 6] = 0
    weights[0, int(true.y[8]) - 12 :, int(true.x[8]) - 12 : int(true.x[8]) + 4] = 0
    bands = [BandData(f"m{b}", image, w, PSFS[0]) for b, (image, w) in enumerate(zip(images, weights))]
    plan, rules, theta = plan_of(FitProblem(bands, true))
    after = warm_start(plan, rules, theta)
    assert np.abs(after - theta)[:8, :3].max() < 0.02
    off = theta + [0.3, 0, 0, 0, 0, 0, 0]
    assert np.abs(warm_start(plan, rules, off) - theta)[:8, 0].max() < 0.1 and np.array_equal(
        warm_start(plan, rules, off)[8], off[8]
    )
