"""What a fit has to compute, counted in floating-point operations.

A source with a stamp of n x n pixels and a Fourier period N, U = (N + 1) / 2, needs for each band and
iteration

    first matrix product   4 a n N U
    second matrix product  4 c n^2 U
    products with itself     c^2 n^2

with (a, c) = (2, 3) for a star, (5, 6) for an exponential or de Vaucouleurs galaxy and (6, 7) for a Sersic
galaxy with
free index: c images, the template and its derivatives. A pair that overlaps in m pixels needs 2 c c' m more.
A source is charged for the start and for every iteration in which it tried to move. In late iterations most
sources
keep their derivatives and only get a new template: then a = c = 1, and a pair needs new products with one row
only.
What a fit renders beyond that (to plan footprints, on the mean image before the first iteration, for quality
numbers, for sources put back or shared by two subfields) is
not charged. At the rate of the machine's best matrix product this gives the roofline of the work that was
done: the time
below which this scheme cannot go.

The *plain scheme* does the same without what saves operations: every move is charged as a full evaluation,
the first
matrix product is a complex one (8 a n N U), periods keep the whole PSF out of the window, and every source
moves as often
as it does without the warm start on the mean image. Its roofline depends on the problem and the number of
moves only, so it stays comparable when the engine learns to save operations.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import one_thread  # noqa: F401  before NumPy
from measure import best_of

from tract7dt.fit import optimise
from tract7dt.fit.engine import fit
from tract7dt.fit.footprints import PERIODS, Footprint, Pixels, plan_footprints, rough_sky, semi_major
from tract7dt.fit.normal import Plan, evaluate, source_stack
from tract7dt.fit.parameters import Start, free_parameters
from tract7dt.fit.problem import FitProblem, FitResult, Kind

FIRST = np.array([2, 5, 5, 6])
IMAGES = np.array([3, 6, 6, 7])


@dataclass(frozen=True)
class Work:
    """Operations of a fit: both matrix products of the rendering, and the products of stacks.

    full, light: how often a source was evaluated on average with new derivatives, and with a new template
    only.
    plain: operations of the plain scheme for the same moves.
    """

    rendering: float
    gram: float
    full: float
    light: float
    plain: float

    @property
    def flops(self) -> float:
        return self.rendering + self.gram


def rendering_flops(kind: int, footprint: Footprint, light: bool = False) -> float:
    """Operations to render one source, with its derivatives unless `light`, in one band; a stamp cut by the
    edge costs less.
    """
    ny, nx = footprint.window.shape
    u = (footprint.period + 1) / 2
    first, images = (1, 1) if light else (FIRST[kind], IMAGES[kind])
    return 4 * first * ny * footprint.period * u + 4 * images * ny * nx * u


def plain_period(kind: int, theta, half: int, psf_radius: int) -> int:
    "Period that keeps the whole PSF, and a galaxy's own light, out of a window of half size `half`."
    own = 0 if kind == Kind.STAR else min((3 if kind == Kind.EXP else 4) * semi_major(theta), 80)
    need = int(np.ceil(half + psf_radius + 3 + own))
    return next((p for p in PERIODS if p >= need), need | 1)


def plain_rendering(plan: Plan, theta, times) -> float:
    "Operations of the plain scheme to render source s `times[s]` times in all bands."
    flops = 0.0
    for t, kind, parameters, f in zip(times, plan.kind, theta, plan.footprints):
        period, (ny, _) = plain_period(kind, parameters, f.half, plan.pixels.psf_radius), f.window.shape
        plain = replace(f, period=period)
        flops += t * (rendering_flops(kind, plain) + 4 * FIRST[kind] * ny * period * (period + 1) / 2)
    return len(plan.pixels.psfs) * flops


def pair_flops(kinds, prints, i: int, j: int, light: bool = False) -> float:
    """Operations for the products of two stacks in one band, half for a stack with itself; of one row of each
    if `light`.
    """
    ny, nx = prints[i].window.clip(prints[j].window).shape
    ci, cj = IMAGES[kinds[i]], IMAGES[kinds[j]]
    return (1 if i == j else 2) * (ci + cj if light else ci * cj) * ny * nx


def plan_of(problem: FitProblem) -> Plan:
    "Footprints, pairs and free parameters of a problem, as the engine plans them."
    pixels, start = Pixels.of(problem), Start.of(problem.sources)
    prints = plan_footprints(problem, pixels, start, *rough_sky(pixels))
    fitted = np.array([not f.window.empty for f in prints], bool)
    return Plan.make(problem, pixels, free_parameters(problem.sources, fitted), prints)


def rendering_of(plan: Plan, times, light: bool = False) -> float:
    "Operations to render source s `times[s]` times in all bands."
    flops = [t * rendering_flops(k, f, light) for t, k, f in zip(times, plan.kind, plan.footprints)]
    return len(plan.pixels.psfs) * sum(flops)


def gram_of(plan: Plan, times, light: bool = False) -> float:
    "Operations for the products of all pairs, each as often as the one of the two that moved more often."
    flops = [
        max(times[i], times[j]) * pair_flops(plan.kind, plan.footprints, i, j, light) for i, j in plan.pairs
    ]
    return len(plan.pixels.psfs) * sum(flops)


@contextmanager
def watching():
    """Count the moves of sources in all fits meanwhile: a list of (all moves, those with new derivatives),
    one for each iteration.
    """
    backtrack, moves = optimise.backtrack, []

    def counted(fit, step):
        moves.append((int(step.moving.sum()), int(step.stale.sum())))
        return backtrack(fit, step)

    optimise.backtrack = counted
    try:
        yield moves
    finally:
        optimise.backtrack = backtrack


def share_of_full_moves(problem: FitProblem) -> float:
    """Share of the moves of sources in which they get new derivatives, counted while the problem is fitted
    once more.
    """
    with watching() as moves:
        fit(problem)
    moved, full = np.sum(moves, axis=0) if moves else (1, 1)
    return full / max(moved, 1)


def moves_from_the_catalog(problem: FitProblem) -> np.ndarray:
    "How often each source moves when no quick fit on the mean image goes before."
    return np.asarray(fit(replace(problem, options=replace(problem.options, warm_start=False))).niters)


def work_of(problem: FitProblem, result: FitResult) -> Work:
    "What the fit of a problem in which everything is free had to compute, given how often each source moved."
    plan, moves, share = plan_of(problem), np.asarray(result.niters), share_of_full_moves(problem)
    full, light = 1 + share * moves, (1 - share) * moves
    rendering = rendering_of(plan, full) + rendering_of(plan, light, light=True)
    gram = gram_of(plan, full) + gram_of(plan, light, light=True)
    every = 1 + moves_from_the_catalog(problem)
    plain = plain_rendering(plan, Start.of(problem.sources).theta, every) + gram_of(plan, every)
    return Work(rendering, gram, float(full.mean()), float(light.mean()), plain)


def evaluation_seconds(problem: FitProblem, repeats: int) -> tuple[float, float]:
    """Processor seconds to render all sources of a problem once, and for a whole evaluation of the normal
    equations.
    """
    plan, theta = plan_of(problem), Start.of(problem.sources).theta
    rendering = best_of(repeats, lambda: [source_stack(plan, theta, s) for s in range(len(theta))])
    return rendering.cpu, best_of(repeats, lambda: evaluate(plan, theta)).cpu


def one_evaluation(problem: FitProblem) -> Work:
    "What rendering and multiplying everything once takes."
    plan, once = plan_of(problem), np.ones(len(problem.sources), int)
    plain = plain_rendering(plan, Start.of(problem.sources).theta, once) + gram_of(plan, once)
    return Work(rendering_of(plan, once), gram_of(plan, once), 1.0, 0.0, plain)
