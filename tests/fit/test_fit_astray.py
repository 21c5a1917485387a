"""Galaxies that run away, fluxes that are negative, skies that want to be elsewhere."""

from dataclasses import replace

import known_truth as truth
import numpy as np

from tract7dt.fit.engine import fit
from tract7dt.fit.flags import FitFlag
from tract7dt.fit.problem import FitProblem, Kind


def flagged(result, flag):
    return (result.flags & int(flag)) != 0


def field(shift=0.0, **changes):
    "Galaxies and stars, sky 0; `shift` counts of a broad blob that no source explains."
    true, side = truth.isolated(Kind.EXP, 5, 4)
    bands, _, _, start = truth.scene(true, side, (10, 60), 5, truth.CAMERAS)
    flat = [replace(b, image=b.image - c.level + shift, **changes) for b, c in zip(bands, truth.CAMERAS)]
    return flat, start


def test_good_galaxies_carry_none():
    bands, start = field(sky_prior=0.0015)
    result = fit(FitProblem(bands, start))
    for flag in (FitFlag.RUNAWAY, FitFlag.NEGATIVE_FLUX_IN_BAND, FitFlag.SKY_ELSEWHERE):
        assert not flagged(result, flag).any()


def test_a_sky_that_wants_to_be_elsewhere_is_told():
    bands, start = field(0.8, sky_prior=0.0015)
    assert flagged(fit(FitProblem(bands, start)), FitFlag.SKY_ELSEWHERE).all()
    bands, start = field(0.8)
    assert not flagged(fit(FitProblem(bands, start)), FitFlag.SKY_ELSEWHERE).any()  # a free sky takes it


def test_a_galaxy_that_takes_a_pedestal_has_run_away():
    "One small faint galaxy on a wide plateau of light."
    true, side = truth.isolated(Kind.EXP, 5, 4)
    bands, start = field(sky_prior=0.0015)
    y, x = np.mgrid[:side, :side]
    r2 = (x - true.x[5]) ** 2 + (y - true.y[5]) ** 2
    wide = [replace(b, image=b.image + 3 * np.exp(-r2 / (2 * 12**2))) for b in bands]
    small = replace(start, re=np.where(np.arange(len(start)) == 5, 1.0, start.re))
    result = fit(FitProblem(wide, small))
    assert flagged(result, FitFlag.RUNAWAY)[5] and result.re[5] > 4.5
    guessed = replace(small, re_guessed=True)
    assert not flagged(fit(FitProblem(wide, guessed)), FitFlag.RUNAWAY).any()


def test_a_hole_is_a_negative_flux():
    bands, start = field()
    y, x = np.mgrid[: len(bands[0].image), : len(bands[0].image)]
    true, _ = truth.isolated(Kind.EXP, 5, 4)
    hole = 40 * np.exp(-((x - true.x[3]) ** 2 + (y - true.y[3]) ** 2) / 18)
    bands[1] = replace(bands[1], image=bands[1].image - hole)
    result = fit(FitProblem(bands, start))
    assert flagged(result, FitFlag.NEGATIVE_FLUX_IN_BAND)[3]
    assert (result.flux[3] / result.flux_err[3] < -5).tolist() == [False, True, False]
