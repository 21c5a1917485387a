"""What a fit has to compute, counted in floating-point operations.

A source with a stamp of n x n pixels and a Fourier period N, U = (N + 1) / 2, needs for each band and iteration

    first matrix product   8 a n N U
    second matrix product  4 c n^2 U
    products with itself     c^2 n^2

with (a, c) = (2, 3) for a star, (5, 6) for an exponential or de Vaucouleurs galaxy and (6, 7) for a Sersic galaxy with
free index: c images, the template and its derivatives. A pair that overlaps in m pixels needs 2 c c' m more.
A source is charged for the start and for every iteration in which it tried to move. At the rate of the machine's best
matrix product this gives the roofline: the time below which this scheme cannot go.
"""

import one_thread  # noqa: F401  before NumPy

from dataclasses import dataclass

import numpy as np

from measure import best_of
from tract7dt.fit.footprints import Footprint, Pixels, rough_sky
from tract7dt.fit.native import plan_footprints
from tract7dt.fit.normal import Layout, evaluate, source_stack
from tract7dt.fit.problem import FitProblem, FitResult
from tract7dt.fit.steps import Start, free_parameters

FIRST = np.array([2, 5, 5, 6])
IMAGES = np.array([3, 6, 6, 7])


@dataclass(frozen=True)
class Work:
    "Operations of a fit: both matrix products of the rendering, and the products of stacks; and full iterations."
    rendering: float
    gram: float
    full_iterations: float

    @property
    def flops(self) -> float:
        return self.rendering + self.gram


def rendering_flops(kind: int, footprint: Footprint) -> float:
    "Operations to render one source and its derivatives in one band; a stamp cut by the edge costs less."
    ny, nx = footprint.window.shape
    u = (footprint.period + 1) / 2
    return 8 * FIRST[kind] * ny * footprint.period * u + 4 * IMAGES[kind] * ny * nx * u


def pair_flops(kinds, prints, i: int, j: int) -> float:
    "Operations for the products of the stacks of two sources in one band; half for a source with itself."
    ny, nx = prints[i].window.clip(prints[j].window).shape
    return (1 if i == j else 2) * IMAGES[kinds[i]] * IMAGES[kinds[j]] * ny * nx


def plan(problem: FitProblem) -> Layout:
    "Footprints, pairs and free parameters of a problem, as the engine plans them."
    pixels, start = Pixels.of(problem), Start.of(problem.sources)
    prints = plan_footprints(problem, pixels, start, *rough_sky(pixels))
    fitted = np.array([not f.window.empty for f in prints], bool)
    return Layout.make(problem, pixels, free_parameters(problem.sources, fitted), prints)


def rendering_of(layout: Layout, times) -> float:
    "Operations to render source s `times[s]` times with all derivatives in all bands."
    return len(layout.pixels.psfs) * sum(t * rendering_flops(k, f) for t, k, f in zip(times, layout.kind, layout.footprints))


def gram_of(layout: Layout, times) -> float:
    "Operations for the products of all pairs, each as often as the one of the two that moved more often."
    return len(layout.pixels.psfs) * sum(max(times[i], times[j]) * pair_flops(layout.kind, layout.footprints, i, j)
                                         for i, j in layout.pairs)


def work_of(problem: FitProblem, result: FitResult) -> Work:
    "What the fit of a problem in which everything is free had to compute, given how often each source moved."
    layout, times = plan(problem), 1 + np.asarray(result.niters)
    return Work(rendering_of(layout, times), gram_of(layout, times), float(times.mean()))


def evaluation_seconds(problem: FitProblem, repeats: int) -> tuple[float, float]:
    "Processor seconds to render all sources of a problem once, and for a whole evaluation of the normal equations."
    layout, theta = plan(problem), Start.of(problem.sources).theta
    rendering = best_of(repeats, lambda: [source_stack(layout, theta, s) for s in range(len(theta))])
    return rendering.cpu, best_of(repeats, lambda: evaluate(layout, theta)).cpu


def one_evaluation(problem: FitProblem) -> Work:
    "What rendering and multiplying everything once takes."
    layout, once = plan(problem), np.ones(len(problem.sources), int)
    return Work(rendering_of(layout, once), gram_of(layout, once), 1.0)
