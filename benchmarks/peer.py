"""The same stars with photutils' PSFPhotometry and with our engine."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import one_thread  # noqa: F401  before NumPy
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning
from measure import best_of
from photutils.psf import ImagePSF, PSFPhotometry, SourceGrouper
from roofline import plan_of
from scene import make_problem

from tract7dt.fit.engine import fit
from tract7dt.fit.problem import FitProblem, Kind


@dataclass(frozen=True)
class Rate:
    "One row of the comparison; `difference` is the median of |flux - our flux| in our errors."

    who: str
    stars_per_second: float
    difference: float


def stars(count: int, seed: int = 5) -> FitProblem:
    "A field of stars in one band."
    return make_problem(count, 1, seed, kinds=(Kind.STAR,))


def with_fixed_positions(problem: FitProblem) -> FitProblem:
    "Forced photometry at the start positions."
    return replace(problem, sources=replace(problem.sources, fix_position=True))


def photutils_fit(problem: FitProblem, side: int, fixed: bool, grouped: bool) -> np.ndarray:
    "Fluxes of all stars by PSFPhotometry, on `side` x `side` pixels each."
    band, sources = problem.bands[0], problem.sources
    model = ImagePSF(band.psf.stamp)
    model.x_0.fixed = model.y_0.fixed = fixed
    photometry = PSFPhotometry(
        model,
        side,
        grouper=SourceGrouper(10) if grouped else None,
        aperture_radius=4,
        group_warning_threshold=1000,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyUserWarning)
        table = photometry(
            band.image, error=1 / np.sqrt(band.invvar), init_params=Table({"x": sources.x, "y": sources.y})
        )
    return np.asarray(table["flux_fit"])


def compare(count: int, fixed: bool, repeats: int) -> list[Rate]:
    "Our rate and theirs, each star alone and in groups of neighbours."
    problem = with_fixed_positions(stars(count)) if fixed else stars(count)
    ours = best_of(3 * repeats, lambda: fit(problem))
    rates, side = [Rate("tract7dt, all jointly", count / ours.cpu, 0.0)], fit_side(problem)
    for grouped, name in ((False, "photutils, each alone"), (True, "photutils, groups")):
        theirs = best_of(repeats, lambda: photutils_fit(problem, side, fixed, grouped))
        off = np.abs(theirs.result - ours.result.flux[:, 0]) / ours.result.flux_err[:, 0]
        rates.append(Rate(name, count / theirs.cpu, float(np.median(off))))
    return rates


def fit_side(problem: FitProblem) -> int:
    "Side of the stamp of a typical star in our fit; theirs gets the same."
    return 2 * int(np.median([f.half for f in plan_of(problem).footprints])) + 1
