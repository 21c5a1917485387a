"""Radii that change with wavelength, against galaxies that GalSim drew."""

from dataclasses import replace

import galsim
import numpy as np
import pytest

from tract7dt.fit.engine import fit
from tract7dt.fit.problem import BandData, FitOptions, FitProblem, Kind, Sources
from tract7dt.fit.psf import moffat_psf

CELL, SIDE = 64, 4  # pixels of a galaxy's place, and places along a side
WAVELENGTHS = {
    "six": np.array([400.0, 500, 575, 650, 750, 850]),
    "twenty": np.arange(400.0, 900, 25),
    "nine": np.array([350.0, 475, 625, 770, 877, 1020, 1252, 1645, 2147]),
}


def places(seed: int) -> tuple[np.random.Generator, dict[str, np.ndarray]]:
    "Where galaxies are and what discs they have."
    rng, count = np.random.default_rng(seed), SIDE**2
    row, column = np.divmod(np.arange(count), SIDE)
    return rng, dict(
        x=CELL * (column + 0.5) + rng.uniform(-0.5, 0.5, count),
        y=CELL * (row + 0.5) + rng.uniform(-0.5, 0.5, count),
        re=rng.uniform(3, 5, count),
        ab=rng.uniform(0.5, 0.95, count),
        theta=rng.uniform(-90, 90, count),
    )


def draw(profiles, psf_fwhm: float, at: dict[str, np.ndarray]) -> np.ndarray:
    "GalSim's image of profiles at places, with a Moffat PSF."
    image = galsim.ImageD(SIDE * CELL, SIDE * CELL)
    psf = galsim.Moffat(beta=3.5, fwhm=psf_fwhm, trunc=27)
    for profile, x, y in zip(profiles, at["x"], at["y"]):
        stamp = galsim.ImageD(galsim.BoundsI(int(x) - 47, int(x) + 49, int(y) - 47, int(y) + 49))
        centre = galsim.PositionD(x + 1, y + 1)
        galsim.Convolve(profile, psf).drawImage(stamp, scale=1, method="no_pixel", center=centre)
        inside = stamp.bounds & image.bounds
        image[inside] += stamp[inside]
    return image.array


def galaxies(at, bulge: float, flux: float) -> list:
    "Exponential discs with a share `bulge` of their light in a smaller, rounder de Vaucouleurs bulge."
    out = []
    for re, ab, theta in zip(at["re"], at["ab"], at["theta"]):
        angle, radius = theta * galsim.degrees, re * np.sqrt(ab)
        disc = galsim.Exponential(half_light_radius=radius, flux=flux * (1 - bulge))
        disc = disc.shear(galsim.Shear(q=ab, beta=angle))
        if bulge:
            law = galsim.Sersic(4, half_light_radius=0.4 * radius, flux=flux * bulge)
            disc = disc + law.shear(galsim.Shear(q=(1 + ab) / 2, beta=angle))
        out.append(disc)
    return out


def problem_of(wavelengths, reddening: float, flux: float, seed: int) -> FitProblem:
    "Galaxies of type EXP whose bulges are redder than their discs by `reddening`; 0: discs alone."
    rng, at = places(seed)
    psf_fwhm, bands = rng.uniform(3, 3.8, len(wavelengths)), []
    for nm, fwhm in zip(wavelengths, psf_fwhm):
        odds = 0.43 * (nm / 600) ** reddening
        image = draw(galaxies(at, odds / (1 + odds) if reddening else 0.0, flux), fwhm, at)
        image = image + rng.normal(0, 1, image.shape)
        bands.append(
            BandData(
                f"b{nm:.0f}", image, np.ones(image.shape), moffat_psf(fwhm), sky_prior=0.001, wavelength=nm
            )
        )
    start = Sources(np.full(SIDE**2, Kind.EXP), **at | {"re": at["re"] * rng.uniform(0.85, 1.15, SIDE**2)})
    return FitProblem(tuple(bands), start)


def with_gradient(problem: FitProblem, wanted: bool) -> FitProblem:
    return replace(problem, options=replace(problem.options, size_gradient=wanted))


@pytest.mark.parametrize("bands", WAVELENGTHS)
def test_colours_of_bulges_in_discs(bands):
    "One radius for all bands gives wrong colours; with a gradient less than half of that is left."
    flux = 12_000 / np.sqrt(len(WAVELENGTHS[bands]))
    problem, spread = problem_of(WAVELENGTHS[bands], 1.1, flux, 3), {}
    for wanted in (False, True):
        result = fit(with_gradient(problem, wanted))
        assert result.converged.all()
        ratio = np.median(result.flux / flux, axis=0)
        spread[wanted] = np.std(ratio / ratio.mean())
    assert spread[False] > 0.01, "one radius is wrong"
    assert spread[True] < 0.5 * spread[False]
    assert np.isfinite(result.gradient).all() and np.median(result.gradient) < -0.1


@pytest.mark.parametrize("flux", [1500.0, 12_000.0])
def test_galaxies_of_one_colour_are_as_before(flux):
    "Discs alone: no bias, and errors that are right for fluxes and for the gradient."
    pulls, tilts = [], []
    for seed in (5, 6):
        result = fit(problem_of(WAVELENGTHS["six"], 0.0, flux, seed))
        assert result.converged.all()
        pulls.append((result.flux - flux) / result.flux_err)
        tilts.append(result.gradient / result.gradient_err)
    assert 0.85 < np.std(pulls) < 1.15 and abs(np.mean(pulls)) < 0.35
    if flux > 10_000:
        assert np.isfinite(tilts).all() and 0.5 < np.std(tilts) < 1.3 and abs(np.mean(tilts)) < 0.5


def test_faint_galaxies_and_unknown_wavelengths_change_nothing():
    "Who is faint, or has a band that nobody knows, is fitted as without."
    faint = problem_of(WAVELENGTHS["six"], 1.1, 300.0, 7)
    same = fit(with_gradient(faint, False))
    assert np.array_equal(fit(with_gradient(faint, True)).flux, same.flux)
    bright = problem_of(WAVELENGTHS["six"], 1.1, 6000.0, 7)
    one = tuple(replace(b, wavelength=np.nan) if b.name == "b650" else b for b in bright.bands)
    result = fit(replace(bright, bands=one))
    assert np.isnan(result.gradient).all() and np.isnan(result.gradient_err).all()
    assert np.array_equal(result.flux, fit(with_gradient(bright, False)).flux)


def test_flux_errors_grow_by_what_the_gradient_costs():
    problem = problem_of(WAVELENGTHS["six"], 1.1, 6000.0, 8)
    with_one, without = (fit(with_gradient(problem, wanted)).flux_err for wanted in (True, False))
    assert np.median(with_one[:, [0, -1]] / without[:, [0, -1]]) > 1.05


def test_a_given_gradient_is_drawn():
    "Sources with a gradient of their own, everything else held, are what was drawn with it."
    nm = WAVELENGTHS["six"]
    problem = problem_of(nm, 0.0, 8000.0, 9)
    tilt, ratio = -0.25, np.log(nm / np.exp(np.mean(np.log(nm))))
    _, at = places(9)
    bands = []
    for band, shift in zip(problem.bands, tilt * ratio):
        own = at | {"re": at["re"] * np.exp(shift)}
        bands.append(
            replace(band, image=draw(galaxies(own, 0.0, 8000.0), 3.2, at), psf=moffat_psf(3.2), sky_prior=0)
        )
    held = dict.fromkeys(("fix_position", "fix_size", "fix_shape"), True)
    sources = Sources(np.full(SIDE**2, Kind.EXP), **at, gradient=tilt, **held)
    right = fit(FitProblem(tuple(bands), sources, FitOptions()))
    wrong = fit(FitProblem(tuple(bands), replace(sources, gradient=np.zeros(SIDE**2)), FitOptions()))
    assert np.abs(right.flux / 8000 - 1).max() < 2e-3
    assert np.abs(wrong.flux / 8000 - 1).max() > 0.02
