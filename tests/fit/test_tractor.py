"""What holds for any engine, run for both; the Tractor adapter; and both engines against each other.

Dustin Lang's Tractor cannot be a requirement, so what needs it is skipped where it is not installed.
"""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_fit_engine import SIZE, check_flagged, hardship, perturbed, problem_of, simulate, spread

from tract7dt.core.errors import UserError
from tract7dt.fit.engine import fit, fit_bands
from tract7dt.fit.flags import FitFlag, FitStatus
from tract7dt.fit.parameters import Start
from tract7dt.fit.problem import BandData, FitOptions, FitProblem, Kind, PixelPSF, Sources
from tract7dt.fit.psf import moffat_psf
from tract7dt.fit.tractor import engine as adapter
from tract7dt.fit.tractor.engine import fit_tractor, fit_tractor_bands, run_stages
from tract7dt.fit.tractor.measure import design
from tract7dt.fit.tractor.scene import (
    TractorSettings,
    build_scene,
    limits,
    native_from_soft,
    native_stamp,
    prior_sigmas,
    require_tractor,
    soft_values,
)

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def why_no_tractor() -> str:
    "The reason for which Tractor cannot be used here, or an empty text."
    try:
        require_tractor()
    except UserError as error:
        return str(error)
    return ""


needs_tractor = pytest.mark.skipif(bool(why_no_tractor()), reason=why_no_tractor() or "Tractor is here")


def fit_mended(problem):
    "Tractor with the right derivatives by position."
    return fit_tractor(problem, TractorSettings(mend_positions=True))


ENGINES = [pytest.param(fit, id="native"), pytest.param(fit_tractor, id="tractor", marks=needs_tractor)]
CONVERGING = [
    pytest.param(fit, id="native"),
    pytest.param(fit_mended, id="tractor-mended", marks=needs_tractor),
]
any_engine = pytest.mark.parametrize("engine", ENGINES)
any_converging_engine = pytest.mark.parametrize("engine", CONVERGING)


def noisy(true, flux, seed=4):
    return simulate(true, np.asarray(flux, float)) + np.random.default_rng(seed).normal(size=(2, SIZE, SIZE))


# ---- what holds for any engine


@any_engine
@pytest.mark.parametrize("case", list(hardship()), ids=lambda case: case[0])
def test_hardship(case, engine):
    "Nothing raises for a source, and nothing comes back not finite without a flag."
    _, (kind, x, y), columns, spoil = case
    images = noisy(
        Sources([0, 1, 2, 3], [20, 75, 75, 120], [30, 75, 76, 60], n=2.0),
        [[3000, 3000], [0, -4000], [9000, 0], [500, 2000.0]],
    )
    weights = np.ones_like(images)
    spoil(images, weights)
    sources = Sources(kind, x, y, **columns)
    problem = problem_of(images, sources, weights=weights, max_iters=2, covariance=True)
    result = engine(problem)
    check_flagged(result, sources.kind)
    assert np.isfinite(result.model).all() and result.model.shape == images.shape
    assert not np.any(np.isfinite(result.flux) & (result.npix == 0))
    usable = Start.of(sources).usable
    assert np.array_equal(result.status == FitStatus.FAILED, ~usable)


@any_engine
def test_no_data_says_so(engine):
    "A hole in one band: NaN flux, infinite error and a flag there, an ordinary flux in the other."
    true = Sources([0, 0], [75, 20], [75, 20])
    images = noisy(true, np.full((2, 2), 3000.0))
    weights = np.ones_like(images)
    weights[0, 38:113, 38:113] = 0
    result = engine(problem_of(images, true, weights=weights))
    assert (
        np.isnan(result.flux[0, 0])
        and np.isinf(result.flux_err[0, 0])
        and np.isinf(result.flux_err_cond[0, 0])
    )
    assert abs(result.flux[0, 1] / 3000 - 1) < 0.02
    assert result.flags[0] == FitFlag.NO_DATA_IN_BAND and result.flags[1] == 0
    assert result.fracmasked[0, 0] == 1 and result.fracmasked[1, 0] < 1e-3


@any_engine
def test_prior_is_no_data(engine):
    "A flux prior does not make up for a band without pixels: the flux stays NaN."
    images, mean, sigma = np.zeros((2, SIZE, SIZE)), np.full((1, 2), 100.0), np.full((1, 2), 5.0)
    weights = np.ones_like(images)
    weights[1] = 0
    result = engine(
        problem_of(images, Sources(0, 75, 75, flux_prior_mean=mean, flux_prior_sigma=sigma), weights=weights)
    )
    assert np.isfinite(result.flux[0, 0]) and np.isnan(result.flux[0, 1]) and np.isinf(result.flux_err[0, 1])
    assert np.isnan(result.sky[1]) and np.isinf(result.sky_err[1])


@any_engine
def test_duplicates_share_and_are_flagged(engine):
    true = Sources([0, 0, 0], [75, 75, 30], [75, 75, 30])
    images = noisy(true, np.full((3, 2), 2000.0))
    result = engine(problem_of(images, replace(true, fix_position=True)))
    assert np.allclose(result.flux[:2].sum(axis=0), 4000, rtol=0.01)
    assert np.allclose(result.flux[0], result.flux[1], rtol=0.05)
    assert (result.flags[:2] & FitFlag.DEGENERATE).all() and not result.flags[2] & FitFlag.DEGENERATE


@any_engine
def test_edge_and_outside_lose_nobody(engine):
    """Galaxies in the last pixel and outside, and a star two pixels outside, are fitted like others, and so
    is their neighbour.
    """
    kind, x, y = [1, 0, 1, 3, 0], [SIZE - 0.8, -2.0, 75, -1.5, 75], [60, 40, SIZE + 0.5, 100, 75]
    true = Sources(kind, x, y, re=2.5, n=1.0, fix_position=True, fix_n=True, fix_shape=True, fix_size=True)
    flux = np.full((5, 2), 1500.0)
    result = engine(problem_of(noisy(true, flux), true))
    assert result.converged.all()
    assert (np.abs(result.flux - flux) / result.flux_err).max() < 4
    assert [bool(f & FitFlag.CENTRE_OUTSIDE) for f in result.flags] == [False, True, True, True, False]


@pytest.fixture(scope="module")
def few():
    "A star and three galaxies with noise, and start values as good as a catalog's."
    true = Sources(
        [0, 1, 2, 3], [40, 110, 42, 108], [40, 42, 108, 110], re=3.0, ab=0.5, theta=[0, 30, -60, 75], n=1.5
    )
    return (
        true,
        noisy(true, np.array([[1500, 2000], [2500, 3000], [3000, 4000], [2500, 3000.0]])),
        perturbed(true, np.random.default_rng(2)),
    )


def held(sources):
    "The same sources with everything but their fluxes fixed."
    return replace(sources, fix_position=True, fix_size=True, fix_shape=True, fix_n=True)


@any_engine
def test_what_is_fixed_stays(few, engine):
    "Anything can be held fixed, exactly; freedom lowers chi-square."
    _, images, sources = few
    forced = engine(problem_of(images, held(sources)))
    assert (forced.status == FitStatus.FIXED).all() and forced.converged.all()
    assert np.array_equal(forced.x, sources.x) and not forced.x_err.any() and not forced.n_err[3].any()
    assert np.allclose(forced.re[1:], sources.re[1:], rtol=1e-9) and np.allclose(
        forced.theta[1:], sources.theta[1:], atol=1e-6
    )
    half = engine(
        problem_of(images, replace(sources, fix_position=np.arange(4) % 2 == 0, fix_n=True), max_iters=4)
    )
    assert np.array_equal(half.x[::2], sources.x[::2]) and (half.x != sources.x)[1::2].all()
    assert half.n[3] == pytest.approx(3, abs=1e-12)
    assert half.chi2_total.sum() < forced.chi2_total.sum()


@any_engine
def test_priors_hold(few, engine):
    "Narrow priors hold what they are put on: position, radius and ellipticity, a flux."
    _, images, sources = few
    mean, sigma = np.zeros((4, 2)), np.full((4, 2), np.inf)
    mean[3, 1], sigma[3, 1] = 777.0, 1e-3
    tight = replace(
        sources,
        pos_sigma=1e-4,
        lnre_sigma=1e-4,
        ee1_sigma=1e-4,
        ee2_sigma=1e-4,
        fix_n=True,
        flux_prior_mean=mean,
        flux_prior_sigma=sigma,
    )
    result = engine(problem_of(images, tight))
    assert np.abs(result.x - sources.x).max() < 0.01
    assert np.abs(np.log(result.re / sources.re))[1:].max() < 0.01
    assert np.abs(result.ab - sources.ab)[1:].max() < 0.01
    assert abs(result.flux[3, 1] - 777) < 0.1


@any_engine
def test_scaled_images_scale_fluxes(few, engine):
    "Counts in other units: same positions, scaled fluxes and errors."
    _, images, sources = few
    one = engine(problem_of(images, held(sources)))
    two = engine(problem_of(images * 8, held(sources), weights=np.full_like(images, 1 / 64)))
    assert np.allclose(two.flux, 8 * one.flux, atol=8e-3 * one.flux_err.min())
    assert np.allclose(two.flux_err, 8 * one.flux_err, rtol=1e-3) and np.allclose(
        two.chi2, one.chi2, rtol=1e-3
    )


@any_engine
def test_same_bytes_again(few, engine):
    _, images, sources = few
    one, two = (engine(problem_of(images, sources, max_iters=2)) for _ in range(2))
    for name in ("x", "re", "flux", "flux_err", "model", "chi2", "flags"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


@any_engine
def test_quality_numbers(engine):
    """chi2 over npix is 1 for a good model and large for a wrong one; fracflux sees the neighbour; halves of
    a source are missed.
    """
    true = Sources([0, 0, 0, 1, 0], [40, 110, 113, 40, 75], [40, 110, 110, 110, -0.5], re=2.0)
    images = noisy(true, np.array([[1500, 1500], [500, 500], [2000, 2000], [1000, 1000], [900, 900.0]]))
    images[:, 34:36, 40] += 40
    result = engine(problem_of(images, replace(true, fix_position=True, fix_shape=True, fix_size=True)))
    reduced = result.chi2 / result.npix
    assert (reduced[0] > 2).all() and (np.abs(reduced[1:] - 1) < 0.4).all()
    assert (result.fracflux[1] > 0.8).all() and (result.fracflux[0] < 0.01).all()
    assert np.allclose(result.fracmasked[4], 0.5, atol=0.01) and (result.fracmasked[:4] < 0.01).all()


@any_engine
def test_close_pair_is_flagged_as_blended(engine):
    "Two stars half a pixel apart share their light: blended; a third that is alone is not."
    true = Sources([0, 0, 0], [75, 75.5, 30], [75, 75, 30])
    result = engine(problem_of(noisy(true, np.full((3, 2), 2000.0)), replace(true, fix_position=True)))
    assert [bool(f & FitFlag.BLENDED) for f in result.flags] == [True, True, False]
    assert (result.flux_err[:2] > 4 * result.flux_err_cond[:2]).all() and (
        result.flux_err[2] < 1.2 * result.flux_err_cond[2]
    ).all()


@pytest.mark.parametrize(
    "engine, engine_bands",
    [
        pytest.param(fit, fit_bands, id="native"),
        pytest.param(fit_tractor, fit_tractor_bands, id="tractor", marks=needs_tractor),
    ],
)
def test_each_band_alone(few, engine, engine_bands):
    "Single-band mode is a fit of each band, flux priors included."
    _, images, sources = few
    sources = replace(
        sources, flux_prior_mean=np.full((4, 2), 1e3), flux_prior_sigma=np.array([[np.inf, 1e-3]] * 4)
    )
    problem = problem_of(images, sources, max_iters=2)
    one, two = engine_bands(problem)
    assert one.flux.shape == (4, 1) and np.allclose(two.flux, 1e3, atol=1)
    alone = replace(sources, flux_prior_mean=None, flux_prior_sigma=None)
    assert np.array_equal(one.flux, engine(replace(problem, bands=problem.bands[:1], sources=alone)).flux)


@any_converging_engine
def test_shapes_and_angles_come_back(engine):
    """Bright exponentials at eight angles: position, angle, axis ratio; mirrored or swapped axes would show
    at 30 and 60 degrees.
    """
    true = spread(9, 1, kind=np.ones(9), re=3.0, ab=0.45, theta=[-90, -60, -30, 0, 20, 45, 60, 80, 89.0])
    result = engine(
        problem_of(
            simulate(true, np.full((9, 2), 3000.0)),
            perturbed(true, np.random.default_rng(2)),
            weak_priors=False,
        )
    )
    assert result.converged.all()
    assert np.abs((result.theta - true.theta + 90) % 180 - 90).max() < 0.3
    assert np.hypot(result.x - true.x, result.y - true.y).max() < 0.02
    assert np.abs(result.ab - true.ab).max() < 0.01
    assert np.abs(result.re / true.re - 1).max() < 0.02, (
        "Tractor's exponential is 1.4 % smaller than its radius says"
    )
    assert np.abs(result.flux / 3000 - 1).max() < 0.015


@any_converging_engine
def test_pulls_of_fluxes(engine):
    """Errors are honest where the model is right: isolated stars of moderate brightness, photon noise
    included.
    """
    pulls = []
    for seed in range(4):
        rng, true = np.random.default_rng(seed), spread(25, seed, kind=np.zeros(25))
        flux = rng.uniform(100, 500, (25, 2))
        truth = simulate(true, flux)
        images = truth + rng.normal(size=truth.shape) * np.sqrt(1 + np.maximum(truth, 0) / 3.0)
        result = engine(problem_of(images, perturbed(true, rng), gain=3.0, weak_priors=False))
        pulls.append((result.flux - flux) / result.flux_err)
    assert 0.88 < np.std(pulls) < 1.12, (
        "four standard errors of the width of 200 pulls are 0.2; the fields are fixed"
    )


# ---- a stall is not convergence, a failure is not an escape


@needs_tractor
def test_stall_on_a_bound_is_not_convergence():
    """One source that is stuck on the edge of its box stops Tractor; the others are told that they have not
    converged.
    """
    true = Sources([0, 0, 1], [40, 110, 75], [40, 40, 110], re=3.0)
    images = noisy(true, np.full((3, 2), 3000.0))
    astray = replace(true, x=true.x + [6, 0.4, 0.3], y=true.y + [0, 0.4, 0.3])
    result = fit_tractor(problem_of(images, astray, pos_max_shift=1.0, weak_priors=False))
    assert result.at_bound[0] == ("pos.x@lower",) and result.flags[0] & FitFlag.BOUND_STALLED
    assert not result.converged[1:].any() and (result.last_dlnp[1:] > 1).all()
    assert (result.flags[1:] & (FitFlag.NOT_CONVERGED | FitFlag.HIT_MAX_ITERS)).all()
    stages = run_stages(
        build_scene(problem_of(images, astray, pos_max_shift=1.0, weak_priors=False), TractorSettings()),
        staged=True,
    )
    assert adapter.End.BLOCKED in [stage.end for stage in stages]


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("sourceOut, not hybrid"),
        AssertionError(),
        np.linalg.LinAlgError("singular"),
        IndexError("out"),
    ],
)
def test_failure_of_tractor_does_not_escape(monkeypatch, caplog, fault):
    "Whatever Tractor raises, its sources come back as failed, and the log says why."

    def breaks(*_):
        raise fault

    monkeypatch.setattr(adapter, "require_tractor", lambda: None)
    monkeypatch.setattr(adapter, "build_scene", breaks)
    problem = problem_of(np.zeros((2, SIZE, SIZE)), Sources([0, 3], [40, 110], [40, 40]), covariance=True)
    with caplog.at_level(logging.WARNING):
        result = fit_tractor(problem)
    assert (result.status == FitStatus.FAILED).all() and (result.flags & FitFlag.FAILED).all()
    assert np.isnan(result.flux).all() and np.isinf(result.flux_err).all() and np.isfinite(result.model).all()
    assert type(fault).__name__ in caplog.text and "2 sources" in caplog.text


@needs_tractor
def test_failure_within_tractor(monkeypatch, few):
    "An exception in the middle of a fit, and an optimiser without an answer."
    _, images, sources = few
    galaxy = require_tractor().ExpGalaxy

    def breaks(*_, **__):
        raise RuntimeError("sourceOut, not hybrid")

    with monkeypatch.context() as patched:
        patched.setattr(galaxy, "getParamDerivatives", breaks)
        assert (fit_tractor(problem_of(images, sources)).status == FitStatus.FAILED).all()
    monkeypatch.setattr(require_tractor().ConstrainedOptimizer, "optimize", lambda *_, **__: (0.0, None, 0.0))
    result = fit_tractor(problem_of(images, sources))
    assert (result.status == FitStatus.FAILED).all() and not result.converged.any()


# ---- the package that is needed


@pytest.fixture
def other_tractor(tmp_path, monkeypatch):
    "Put a package of the name `tractor`, made of the given files, in front of all others."

    def put(**files):
        for name in [name for name in sys.modules if name.split(".")[0] == "tractor"]:
            monkeypatch.delitem(sys.modules, name)
        (tmp_path / "tractor").mkdir()
        for name, text in files.items():
            (tmp_path / "tractor" / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    yield put
    for name in [name for name in sys.modules if name.split(".")[0] == "tractor"]:
        del sys.modules[name]


def complaint() -> str:
    with pytest.raises(UserError) as caught:
        require_tractor()
    assert "\n" not in str(caught.value)
    assert "unrelated project" in str(caught.value) and "patch_run.engine: native" in str(caught.value)
    return str(caught.value)


def test_unrelated_tractor_is_recognised(other_tractor):
    "The package index's `tractor` runs processes."
    other_tractor(__init__="from ._root import open_root_actor\n", _root="def open_root_actor(): pass\n")
    assert "is another project" in complaint()


def test_unrelated_tractor_with_modules_of_the_same_names(other_tractor):
    names = ("constrained_optimizer", "ellipses", "galaxy", "sersic")
    other_tractor(__init__="", **dict.fromkeys(names, ""))
    assert "is another project, it has no tractor.Catalog" in complaint()


def test_tractor_without_what_it_needs(other_tractor):
    other_tractor(__init__="import astrometry_that_nobody_has\n")
    assert "No module named 'astrometry_that_nobody_has'" in complaint()


def test_no_tractor_at_all(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tractor"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tractor", None)
    assert "is not installed" in complaint()


def test_nobody_needs_tractor_to_import():
    "The adapter's modules do not import Tractor when they are imported."
    code = "import sys; sys.modules['tractor'] = None; import tract7dt, tract7dt.fit.tractor.engine"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).returncode
        == 0
    )


# ---- translation


def test_soft_ellipticities_there_and_back():
    rng = np.random.default_rng(1)
    theta = np.column_stack(
        [np.zeros((50, 2)), rng.normal(1, 1, 50), rng.normal(0, 1, (50, 2)), np.full(50, 2.0)]
    )
    theta[0, 3:5] = 0
    soft = soft_values(theta)
    assert np.allclose(native_from_soft(*soft[:, 2:5].T).T, theta[:, 2:5], atol=1e-9)


@needs_tractor
def test_ellipses_are_those_of_tractor():
    "THETA, axis ratio and radius against Tractor's own conversion, which counts angles from the y axis."
    ellipse = require_tractor().EllipseESoft
    sources = Sources(
        np.ones(5),
        np.zeros(5),
        0,
        re=[0.5, 1, 2, 3, 4],
        ab=[0.1, 0.3, 0.5, 0.9, 0.999],
        theta=[-90, -35, 0, 20, 80],
    )
    ours = soft_values(Start.of(sources).theta)[:, 2:5]
    theirs = [
        ellipse.fromRAbPhi(r, ab, t - 90).getAllParams()
        for r, ab, t in zip(sources.re, sources.ab, sources.theta)
    ]
    assert np.allclose(ours, theirs, atol=1e-9)


def test_weak_priors_are_as_wide_as_the_native_ones():
    "Widths of ln re, ee1 and ee2 are those of samples drawn from the native priors."
    sources = Sources([Kind.SERSIC] * 3, np.zeros(3), 0, re=3.0, ab=[0.9, 0.5, 0.3], theta=[10, 40, -70])
    start = Start.of(sources)
    widths = prior_sigmas(sources, start, weak=True)
    rng = np.random.default_rng(3)
    for theta, width in zip(start.theta, widths):
        drawn = np.tile(theta, (20000, 1))
        drawn[:, 2:5] += rng.normal(0, 0.05, (20000, 3))
        assert np.allclose(10 * soft_values(drawn)[:, 2:5].std(axis=0), width[2:5], rtol=0.03)


@needs_tractor
def test_priors_of_tractor_are_those_asked_for():
    """Value of ln p, and the step back to the middle of the priors where there are no data: both for every
    parameter.
    """
    sources = Sources(
        [0, 3],
        [40, 75],
        [50, 75],
        re=3.0,
        ab=0.6,
        theta=30,
        n=2.0,
        flux_prior_mean=[[50, 60], [70, 80]],
        flux_prior_sigma=np.full((2, 2), 5.0),
    )
    problem = problem_of(np.zeros((2, SIZE, SIZE)), sources, weights=np.full((2, SIZE, SIZE), 1e-18))
    scene = build_scene(problem, TractorSettings())
    scene.tractor.freezeParam("images")
    start = np.array(scene.tractor.getParams())
    shift = 0.05 * (-1.0) ** np.arange(len(start))
    scene.tractor.setParams(start + shift)
    star, galaxy = (
        np.append(scene.sigmas[0, :2], [5, 5]),
        np.concatenate([scene.sigmas[1, :2], [5, 5], scene.sigmas[1, 2:]]),
    )
    assert np.isfinite(galaxy).all() and len(start) == 4 + 8
    assert scene.tractor.getLogPrior() == pytest.approx(
        -0.5 * np.sum((shift / np.append(star, galaxy)) ** 2), rel=1e-9
    )
    scene.tractor.optimize()
    assert np.allclose(scene.tractor.getParams(), start, atol=1e-4)


def test_limits_are_those_of_old():
    low, high = limits(np.array([[10, 20, 0, 0, 0, 3.0]]), 5.0)
    assert np.allclose(low, [[5, 15, np.log(0.1), -100, -100, 0.29]]) and np.allclose(
        high, [[15, 25, np.log(1000), 100, 100, 6.3]]
    )


def test_gradient_of_a_psf_is_taken_at_the_middle():
    "Tractor has one stamp for all sources."
    stamp = moffat_psf(3.0, radius=9).stamp
    slope = np.array([stamp - stamp[::-1], stamp - stamp.T]) * 1e-3
    try:
        psf = PixelPSF(stamp, gradient=slope, origin=(10.0, 20.0))
    except TypeError:
        pytest.skip("PixelPSF has no gradient")
    assert np.allclose(native_stamp(psf, (14.0, 17.0)), stamp + 4 * slope[0] - 3 * slope[1], atol=1e-12)


# ---- the engines against each other


@pytest.fixture
def same_profiles(monkeypatch):
    "Let the native engine's mixtures be those of the installed Tractor."
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        monkeypatch.setenv(name, "1")
    from tractor_profiles import tractor_profiles

    with tractor_profiles():
        yield


@pytest.fixture
def compare(same_profiles):
    import compare_engines

    return compare_engines


@needs_tractor
@pytest.mark.parametrize("offset, worst", [(0.0, 1e-4), (0.4, 0.01)], ids=["whole pixels", "Lanczos"])
@pytest.mark.parametrize("kind, n", [(0, 1), (1, 1), (2, 4), (3, 0.8), (3, 1.5), (3, 3), (3, 5)])
def test_templates_agree(compare, kind, n, offset, worst):
    """Same profile, same stamp: at whole pixels both renderers draw the same; elsewhere Tractor interpolates.

    The share of the light that Tractor's stamps cut off at 8 half-light radii counts in neither sum.
    """
    sources = Sources([kind], [75 + offset], [75 - offset], re=3.0, ab=0.5, theta=30, n=n)
    problem = FitProblem(
        [BandData("m", np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE)), moffat_psf(3.2))],
        sources,
        FitOptions(profiles="mixture"),
    )
    theirs = compare.templates(problem, "tractor")[0][:, 0].toarray()
    ours = compare.templates(problem, "native_same_profiles")[0][:, 0].toarray() * (theirs != 0)
    assert np.abs(ours - theirs).max() < worst * ours.max()
    assert abs(theirs.sum() / ours.sum() - 1) < 3e-4
    assert abs(np.sqrt((theirs**2).sum() / (ours**2).sum()) - 1) < 0.005, "conditional errors"


@needs_tractor
def test_native_finds_the_better_solution_in_the_eyes_of_tractor(compare, few):
    """Chi-square by Tractor's own renderer, same profiles: the native solution is not worse; fluxes solved
    again agree.
    """
    _, images, sources = few
    problem = compare.as_in_070(compare.same_for_both(problem_of(images, sources)))
    problem = replace(problem, options=replace(problem.options, max_iters=8))
    native, reference = (
        compare.solve_native(problem, True).result,
        compare.solve_tractor(problem, False).result,
    )
    assert native.converged.all() and not reference.converged[1:].any()
    assert compare.check(problem, native, "tractor").chi2 < compare.check(problem, reference, "tractor").chi2
    again = [compare.check(problem, reference, renderer) for renderer in ("tractor", "native_same_profiles")]
    assert again[0].best_chi2 <= again[0].chi2
    assert (np.abs(again[0].flux - again[1].flux) / again[1].flux_err_cond).max() < 0.3
    assert np.abs(again[0].flux_err_cond / again[1].flux_err_cond - 1).max() < 0.005
    mine = compare.check(problem, reference, "tractor").flux_err_cond
    assert np.allclose(reference.flux_err_cond, mine, rtol=1e-3), (
        "the adapter's conditional errors are those of its templates"
    )


@needs_tractor
def test_conditional_errors_are_those_of_tractor(few):
    "The adapter's matrix gives what Tractor itself calls the variance of a flux."
    _, images, sources = few
    scene = build_scene(problem_of(images, sources, weak_priors=False), TractorSettings())
    optimised = scene.tractor
    for source in optimised.catalog:
        source.freezeAllBut("brightness")
    optimised.freezeParam("images")
    theirs = np.sqrt(optimised.optimize(variance=True, just_variance=True)).reshape(len(sources), 2)
    for source in optimised.catalog:
        source.thawAllParams()
    for b in range(2):
        A = design(scene, b)[:, 6 * len(sources) : -1]
        assert np.allclose(1 / np.sqrt(A.multiply(A).sum(axis=0)), theirs[:, b], rtol=1e-4)


@needs_tractor
def test_why_galaxies_do_not_move(few):
    """With the right derivatives by position galaxies find their place; as 0.7.0 ran Tractor they stay at
    their start.
    """
    true, images, sources = few
    problem = problem_of(images, sources, weak_priors=False, max_iters=12)
    stay, move = fit_tractor(problem), fit_mended(problem)

    def off(result):
        return np.hypot(result.x - true.x, result.y - true.y)[1:]

    assert np.hypot(stay.x - sources.x, stay.y - sources.y)[1:].max() < 0.02
    assert (off(move) < 0.1).all() and off(stay).max() > 0.1
    assert move.converged.all() and not stay.converged[1:].any()
    assert abs(stay.x[0] - true.x[0]) < 0.05, "stars take another way and do move"
