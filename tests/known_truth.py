"""Simulated scenes whose truth is known, drawn by GalSim, and what a fit made of them.

GalSim draws the sources and the PSF stamps; the engine sees nothing but pixels, stamps and start values as
good as a
catalog's. Everything follows from seeds.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import galsim
import numpy as np
import pandas as pd

from tract7dt.fit.engine import fit
from tract7dt.fit.problem import BandData, FitOptions, FitProblem, Kind, PixelPSF, Sources

PRECISE = galsim.GSParams(folding_threshold=1e-3, maxk_threshold=1e-3, maximum_fft_size=8192)
STEP, HALF = 40, 35
SHAPE = ("kind", "x", "y", "re", "ab", "theta", "n")


@dataclass(frozen=True)
class Camera:
    "One band: a sheared Moffat PSF, sky noise (counts), electrons per count, a constant of sky."

    fwhm: float
    e1: float
    e2: float
    sky: float
    gain: float
    level: float


CAMERAS = (
    Camera(2.9, 0.03, -0.02, 1.0, 30.0, 2.0),
    Camera(3.2, -0.02, 0.04, 1.3, 20.0, -1.0),
    Camera(3.5, 0.0, 0.03, 0.8, 40.0, 0.5),
)


@lru_cache
def star_light(camera: Camera):
    "The PSF with the pixel in it; to be sampled, not integrated again."
    moffat = galsim.Moffat(beta=3.5, fwhm=camera.fwhm).shear(e1=camera.e1, e2=camera.e2)
    return galsim.Convolve(moffat, galsim.Pixel(1), gsparams=PRECISE)


@lru_cache
def psf_stamp(camera: Camera) -> PixelPSF:
    return PixelPSF(star_light(camera).drawImage(nx=71, ny=71, scale=1, method="no_pixel", dtype=float).array)


def galaxy_light(kind, re, ab, theta, n):
    "Unit flux; `re` is the semi-major half-light radius; DEV and SERSIC end at 8 radii."
    radius = re * np.sqrt(ab)
    index = 4.0 if kind == Kind.DEV else n
    law = (
        galsim.Exponential(half_light_radius=radius)
        if kind == Kind.EXP
        else galsim.Sersic(n=index, half_light_radius=radius, trunc=8 * radius)
    )
    return law.shear(q=ab, beta=theta * galsim.degrees)


def draw(sources: Sources, s: int, camera: Camera):
    "Unit-flux GalSim stamp of source `s`, pixels from 0."
    light = star_light(camera)
    if sources.kind[s] != Kind.STAR:
        shape = (getattr(sources, name)[s] for name in ("kind", "re", "ab", "theta", "n"))
        light = galsim.Convolve(galaxy_light(*shape), light, gsparams=PRECISE)
    x, y = round(sources.x[s]), round(sources.y[s])
    half = HALF if sources.kind[s] in (Kind.STAR, Kind.EXP) else int(max(HALF, 8 * sources.re[s] + 10))
    stamp = galsim.ImageD(galsim.BoundsI(x - half, x + half, y - half, y + half))
    return light.drawImage(
        stamp, scale=1, method="no_pixel", center=galsim.PositionD(sources.x[s], sources.y[s])
    )


def flux_for_snr(snr, area, camera: Camera):
    "Flux of a source of noise-equivalent `area` that is measured with that S/N: sky and own photons."
    photon = snr**2 / camera.gain
    return 0.5 * (photon + np.sqrt(photon**2 + 4 * snr**2 * area * camera.sky**2))


def best_snr(light, camera: Camera) -> float:
    "S/N of a source alone on the sky with everything but its flux known."
    return float(np.sqrt(np.sum(light**2 / (camera.sky**2 + np.maximum(light, 0) / camera.gain))))


def photograph(sources: Sources, snr, side: int, camera: Camera):
    "Expected image without sky, true fluxes and true S/N of sources that aim at `snr`."
    image = galsim.ImageD(galsim.BoundsI(0, side - 1, 0, side - 1))
    flux, true_snr = np.empty(len(sources)), np.empty(len(sources))
    for s in range(len(sources)):
        stamp = draw(sources, s, camera)
        flux[s] = flux_for_snr(snr[s], 1 / (stamp.array**2).sum(), camera)
        stamp *= flux[s]
        true_snr[s] = best_snr(stamp.array, camera)
        common = stamp.bounds & image.bounds
        image[common] += stamp[common]
    return image.array, flux, true_snr


def observe(image, camera: Camera, rng):
    "Photon noise, sky noise, sky level."
    electrons = rng.poisson(np.maximum(image, 0) * camera.gain) / camera.gain
    return electrons + rng.normal(camera.level, camera.sky, image.shape)


def catalogued(true: Sources, rng) -> Sources:
    """Start values as a detection program gives them: 0.12 px, 20 % in radius, 0.1 in axis ratio, 8 degrees,
    20 % in n.
    """
    count = len(true)
    return replace(
        true,
        x=true.x + rng.normal(0, 0.12, count),
        y=true.y + rng.normal(0, 0.12, count),
        re=true.re * np.exp(rng.normal(0, 0.2, count)),
        ab=np.clip(true.ab + rng.normal(0, 0.1, count), 0.15, 1),
        theta=true.theta + rng.normal(0, 8, count),
        n=np.clip(true.n * np.exp(rng.normal(0, 0.2, count)), 0.6, 5.5),
    )


def galaxies(kind, x, y, rng) -> Sources:
    """Sources of that `kind` at x, y with shapes of faint galaxies; indices in steps of a half, for GalSim's
    sake.
    """
    count = len(x)
    return Sources(
        kind,
        x,
        y,
        re=rng.uniform(1.8, 4.0, count),
        ab=rng.uniform(0.35, 0.95, count),
        theta=rng.uniform(-90, 90, count),
        n=rng.integers(2, 8, count) / 2,
    )


def grid(side_count: int, rng):
    "Places on a jittered grid, `STEP` pixels apart, and the side of the image."
    y, x = np.divmod(np.arange(side_count**2), side_count)
    return *(STEP * (k + 0.5) + rng.uniform(-4, 4, len(k)) for k in (x, y)), STEP * side_count


def isolated(kind: Kind, seed: int, side_count: int = 5) -> tuple[Sources, int]:
    "A field of sources of one kind, all apart."
    rng = np.random.default_rng([seed, 1])
    x, y, side = grid(side_count, rng)
    return galaxies(np.full(len(x), int(kind)), x, y, rng), side


def pairs(
    kinds: tuple[Kind, Kind], low: float, high: float, seed: int, side_count: int = 5
) -> tuple[Sources, int]:
    "A field of pairs of the two kinds, `low` to `high` times the seeing apart."
    rng = np.random.default_rng([seed, 2])
    x, y, side = grid(side_count, rng)
    distance = np.mean([c.fwhm for c in CAMERAS]) * rng.uniform(low, high, len(x))
    angle = rng.uniform(0, 2 * np.pi, len(x))
    x, y = np.append(x, x + distance * np.cos(angle)), np.append(y, y + distance * np.sin(angle))
    return galaxies(np.repeat([int(k) for k in kinds], len(x) // 2), x, y, rng), side


def scene(true: Sources, side: int, snr_range, seed: int, cameras, noise: bool = True):
    """Photograph sources with every camera: bands, true fluxes [S, B], true S/N [S, B] and catalog-like start
    values.

    A source's S/N is drawn evenly in its logarithm and differs between bands by a third.
    """
    rng = np.random.default_rng([seed, 3])
    snr = np.exp(rng.uniform(*np.log(snr_range), len(true)))
    bands, fluxes, snrs = [], [], []
    for b, camera in enumerate(cameras):
        aim = np.clip(snr * np.exp(rng.normal(0, 0.3, len(true))), *snr_range)
        image, flux, true_snr = photograph(true, aim, side, camera)
        image = observe(image, camera, rng) if noise else image + camera.level
        bands.append(
            BandData(f"m{b}", image, np.full(image.shape, camera.sky**-2), psf_stamp(camera), camera.gain)
        )
        fluxes.append(flux), snrs.append(true_snr)
    return bands, np.array(fluxes).T, np.array(snrs).T, catalogued(true, rng)


def measure(true: Sources, side: int, snr_range, seed: int, noise: bool = True, **options) -> pd.DataFrame:
    """Photograph sources with every camera, fit them from catalog-like start values, and compare; one row for
    each source and band, with its true S/N.
    """
    bands, flux, snr, start = scene(true, side, snr_range, seed, CAMERAS, noise)
    return compare(true, flux, snr, fit(FitProblem(bands, start, FitOptions(**options))), seed)


def compare(true: Sources, flux, snr, result, seed: int) -> pd.DataFrame:
    "One row per source and band: offsets and pulls of fluxes, positions and shapes."
    count, bands = flux.shape

    def each(values):
        return np.repeat(values, bands)

    table = pd.DataFrame(
        {
            "field": seed,
            "source": each(np.arange(count)),
            "band": np.tile(np.arange(bands), count),
            "kind": each(true.kind),
            "snr": snr.ravel(),
            "flux": flux.ravel(),
            "offset": (result.flux / flux - 1).ravel(),
            "pull": ((result.flux - flux) / result.flux_err).ravel(),
            "pull_cond": ((result.flux - flux) / result.flux_err_cond).ravel(),
            "snr_all": each(np.sqrt((snr**2).sum(axis=1))),
            "flag": each(result.flags),
            "status": each(result.status),
            "pull_x": each((result.x - true.x) / result.x_err),
            "pull_y": each((result.y - true.y) / result.y_err),
        }
    )
    star = true.kind == Kind.STAR
    return table.assign(
        d_lnre=each(np.where(star, np.nan, np.log(result.re / true.re))),
        d_ab=each(result.ab - true.ab),
        d_n=each(result.n - true.n),
        pull_lnre=each((result.re - true.re) / np.where(star, 1, result.re_err)),
    )


def width_slack(count: int) -> float:
    "Three standard errors of the standard deviation of `count` Gaussian pulls."
    return 3 / np.sqrt(2 * count)


def mean_slack(values) -> float:
    "Three standard errors of the mean of `values`."
    return 3 * np.std(values) / np.sqrt(len(values))


def median_slack(values) -> float:
    "Three standard errors of the median of `values`, from their robust width."
    deviation = 1.4826 * np.median(np.abs(values - np.median(values)))
    return 3 * 1.2533 * deviation / np.sqrt(len(values))
