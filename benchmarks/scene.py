"""Random fields to be fitted, rendered by the engine itself: fields for speed, not for truth."""

import numpy as np
import one_thread  # noqa: F401  before NumPy

from tract7dt.fit.parameters import Start
from tract7dt.fit.problem import BandData, FitOptions, FitProblem, Kind, Sources
from tract7dt.fit.psf import moffat_psf, psf_cube
from tract7dt.fit.render import Window, render_stack

DENSITY = 30 / 230**2
GAIN = 4.0
MIX = (
    Kind.STAR,
    Kind.EXP,
    Kind.STAR,
    Kind.SERSIC,
    Kind.EXP,
    Kind.STAR,
    Kind.DEV,
    Kind.STAR,
    Kind.EXP,
    Kind.SERSIC,
)


def field_size(count: int) -> int:
    "Side of the square, pixels, in which `count` sources have the standard density: 230 for 30 sources."
    return round(np.sqrt(count / DENSITY))


def true_sources(rng, count: int, kinds=MIX) -> Sources:
    "Sources at random places of their square; the mix of kinds is the same for any number."
    low, high = 5, field_size(count) - 5
    return Sources(
        np.resize(kinds, count),
        rng.uniform(low, high, count),
        rng.uniform(low, high, count),
        re=rng.uniform(1.5, 4, count),
        ab=rng.uniform(0.3, 1, count),
        theta=rng.uniform(-90, 90, count),
        n=rng.uniform(0.8, 4, count),
    )


def catalog_like(rng, true: Sources) -> Sources:
    "Start values such as a detection catalog has: 0.15 px, 25 % in re, 0.1 in b/a, 6 degrees, 30 % in n."
    count = len(true)
    return Sources(
        true.kind,
        true.x + rng.normal(0, 0.15, count),
        true.y + rng.normal(0, 0.15, count),
        re=true.re * np.exp(rng.normal(0, 0.25, count)),
        ab=np.clip(true.ab + rng.normal(0, 0.1, count), 0.2, 1),
        theta=true.theta + rng.normal(0, 6, count),
        n=np.clip(true.n * np.exp(rng.normal(0, 0.3, count)), 0.6, 6),
    )


def noiseless(true: Sources, snr, psfs, size: int) -> np.ndarray:
    "Images [B, size, size] of sources with signal-to-noise ratios `snr` [S, B] for a sky noise of 1 a pixel."
    images, frame = np.zeros((len(psfs), size, size), np.float32), Window(0, size, 0, size)
    grid, cube = psf_cube(psfs, 221)
    for kind, theta, ratio in zip(true.kind, Start.of(true).theta, snr):
        window = Window.around(theta[0], theta[1], 60)
        template = render_stack(kind, theta, window, grid, cube)[:, 0]
        flux = ratio / np.sqrt(np.sum(template**2, axis=(1, 2)))
        part = window.clip(frame)
        images[part.slices] += flux[:, None, None].astype(np.float32) * template[part.within(window)]
    return images


def make_problem(
    count: int = 30, bands: int = 6, seed: int = 1, kinds=MIX, snr=(3, 300), **options
) -> FitProblem:
    """A field at the standard density.

    Parameters
    ----------
    count, bands : int
    seed : int
        Same seed, same bytes.
    kinds : sequence of Kind
        Repeated in this order.
    snr : pair of float
        Smallest and largest signal-to-noise ratio of a source in one band; they are spread evenly in the
        logarithm.
    options : FitOptions
    """
    rng, size = np.random.default_rng([seed, count, bands]), field_size(count)
    true = true_sources(rng, count, kinds)
    ratios = rng.permutation(np.geomspace(*snr, count))[:, None] * (
        1 + rng.uniform(-0.2, 0.2, (count, 1)) * np.linspace(-1, 1, bands)
    )
    psfs = [moffat_psf(fwhm) for fwhm in np.linspace(2.9, 3.5, bands)]
    light = noiseless(true, ratios, psfs, size)
    images = light + rng.normal(0, 1, light.shape) * np.sqrt(1 + np.maximum(light, 0) / GAIN)
    data = [
        BandData(f"band{b:02d}", image, np.ones_like(image), psf, GAIN)
        for b, (image, psf) in enumerate(zip(images, psfs))
    ]
    return FitProblem(data, catalog_like(rng, true), FitOptions(**options))
