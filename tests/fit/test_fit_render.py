"""Rendering against GalSim, which shares no code with us: templates, derivatives, conventions."""

import galsim
import numpy as np
import pytest

from tract7dt.fit.problem import Kind, PixelPSF
from tract7dt.fit.psf import moffat_psf, psf_cube
from tract7dt.fit.render import Window, render_stack
from tract7dt.fit.shapes import native_from_catalog

PRECISE = galsim.GSParams(
    folding_threshold=1e-4, maxk_threshold=1e-4, kvalue_accuracy=1e-6, maximum_fft_size=16384
)
STAMP, FIELD, HALF = 91, 61, 30


def galsim_psf(fwhm):
    "Moffat with the pixel response in it, as an ePSF has."
    moffat = galsim.Moffat(beta=3.5, fwhm=fwhm, gsparams=PRECISE)
    return galsim.Convolve(moffat, galsim.Pixel(1), gsparams=PRECISE)


def galsim_profile(kind, re, ab, theta, n):
    radius = re * np.sqrt(ab)
    if kind == Kind.EXP:
        law = galsim.Exponential(half_light_radius=radius, gsparams=PRECISE)
    else:
        index = 4.0 if kind == Kind.DEV else n
        law = galsim.Sersic(n=index, half_light_radius=radius, trunc=8 * radius, gsparams=PRECISE)
    return law.shear(q=ab, beta=theta * galsim.degrees)


def draw(profile, size, dx=0.0, dy=0.0, scale=1.0):
    return profile.drawImage(
        nx=size, ny=size, scale=scale, method="no_pixel", offset=(dx, dy), dtype=float
    ).array


def stamp_of(fwhm, oversampling=1):
    "The PSF as a pixelised stamp, not renormalised."
    size = STAMP if oversampling == 1 else 2 * STAMP - 1
    values = draw(galsim_psf(fwhm), size, scale=1 / oversampling) * oversampling**2
    return PixelPSF(values, oversampling)


def ours(kind, psf, dx, dy, re=1.0, ab=1.0, theta=0.0, n=1.0):
    grid, cube = psf_cube([psf], 241)
    parameters = np.array([dx, dy, *native_from_catalog(re, ab, theta), n])
    return render_stack(kind, parameters, Window.around(0, 0, HALF), grid, cube)[0, 0].astype(float)


def compare(image, truth, peak_tolerance, flux_tolerance):
    assert np.abs(image - truth).max() < peak_tolerance * truth.max()
    assert abs((image * truth).sum() / (truth * truth).sum() - 1) < flux_tolerance


def phases(seed, count):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (count, 2))


@pytest.mark.parametrize("fwhm", [3.0, 4.2])
def test_star(fwhm):
    "A star at any sub-pixel phase is GalSim's star."
    psf = stamp_of(fwhm)
    for dx, dy in phases(1, 4):
        compare(ours(Kind.STAR, psf, dx, dy), draw(galsim_psf(fwhm), FIELD, dx, dy), 1e-3, 1e-4)


@pytest.mark.parametrize("re", [1.0, 2.5, 5.0])
def test_exponential(re):
    "An exponential galaxy at random phases and angles."
    psf, rng = stamp_of(3.0), np.random.default_rng(2)
    for dx, dy in phases(3, 2):
        theta = rng.uniform(-90, 90)
        truth = galsim.Convolve(
            galsim_profile(Kind.EXP, re, 0.5, theta, 1), galsim_psf(3.0), gsparams=PRECISE
        )
        compare(ours(Kind.EXP, psf, dx, dy, re, 0.5, theta), draw(truth, FIELD, dx, dy), 3e-4, 1e-4)


@pytest.mark.parametrize(
    "kind, n, re",
    [
        (Kind.SERSIC, 0.8, 2.0),
        (Kind.SERSIC, 1.55, 3.0),
        (Kind.SERSIC, 2.7, 2.5),
        (Kind.SERSIC, 4.0, 1.5),
        (Kind.DEV, 4.0, 3.0),
    ],
)
def test_sersic(kind, n, re):
    "Truncated Sersic laws and de Vaucouleurs' at random phases and angles."
    psf = stamp_of(3.0)
    for (dx, dy), theta in zip(phases(4, 1), (35.0,)):
        truth = galsim.Convolve(galsim_profile(kind, re, 0.5, theta, n), galsim_psf(3.0), gsparams=PRECISE)
        compare(ours(kind, psf, dx, dy, re, 0.5, theta, n), draw(truth, FIELD, dx, dy), 5e-4, 1e-4)


FOLDED = pytest.mark.xfail(strict=True, reason="measured: 3.2e-3 of the peak, half-way between pixels")


@pytest.mark.parametrize(
    "fwhm, oversampling, peak, flux",
    [
        pytest.param(2.5, 1, 3e-3, 3e-4, marks=FOLDED),
        (2.6, 1, 3e-3, 3e-4),
        (2.5, 2, 1e-3, 1e-4),
        (2.0, 2, 1e-3, 1e-4),
    ],
)
def test_coarse_sampling(fwhm, oversampling, peak, flux):
    """Narrow PSFs at the worst phases, which are half-way between pixels.

    A native stamp has what is beyond half a cycle per pixel folded onto what is below; moved by half a pixel,
    the folded part
    has the wrong sign. That is a property of the stamp, not of the transform: at a FWHM of 2.5 pixels it
    makes 3.2e-3 of the peak,
    at 2.6 2.4e-3. Two samples per pixel cure it, and the pipeline takes them far above these widths.
    """
    psf = stamp_of(fwhm, oversampling)
    for dx, dy in [(0.5, 0.5), (0.5, 0), (0, -0.5), (0.37, -0.21), *phases(7, 2)]:
        compare(ours(Kind.STAR, psf, dx, dy), draw(galsim_psf(fwhm), FIELD, dx, dy), peak, flux)


def test_coarse_galaxy():
    "A galaxy hides most of the sampling; two samples per pixel serve it as well as a star."
    truth = galsim.Convolve(galsim_profile(Kind.EXP, 2.0, 0.6, 20, 1), galsim_psf(2.0), gsparams=PRECISE)
    compare(
        ours(Kind.EXP, stamp_of(2.0, 2), 0.37, -0.21, 2.0, 0.6, 20),
        draw(truth, FIELD, 0.37, -0.21),
        1e-3,
        1e-4,
    )


def test_mixed_sampling():
    "Bands with and without oversampling share a render."
    native, double = moffat_psf(3.4, radius=20), moffat_psf(3.4, radius=20, oversampling=2)
    grid, cube = psf_cube([native, double], 101)
    theta = np.array([0.3, -0.4, *native_from_catalog(2.0, 0.5, 30.0), 2.0])
    image = render_stack(Kind.SERSIC, theta, Window.around(0, 0, 20), grid, cube)[:, 0]
    alone = render_stack(Kind.SERSIC, theta, Window.around(0, 0, 20), *psf_cube([native], 101))[0, 0]
    assert np.abs(image[0] - alone).max() < 1e-6
    assert np.abs(image[1] - alone).max() < 1e-3 * alone.max()


SHAPES = {
    "ordinary": (3.0, 0.5, 30.0),
    "round": (2.0, 1.0, 0.0),
    "needle": (6.0, np.exp(-2.9), -70.0),
    "point": (0.1, 1.0, 0.0),
}


@pytest.mark.parametrize("kind", [Kind.STAR, Kind.EXP, Kind.DEV, Kind.SERSIC])
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives(kind, shape):
    "Analytic derivatives against central differences, 1e-3 of the largest value of each."
    wanted = {Kind.STAR: [0, 1], Kind.SERSIC: range(6)}.get(kind, range(5))
    grid, cube = psf_cube([moffat_psf(3.0, radius=20)], 121)
    theta = np.array([0.31, -0.27, *native_from_catalog(*SHAPES[shape]), 2.3])
    window = Window.around(0, 0, 15)
    stack = render_stack(kind, theta, window, grid, cube, wanted)[0].astype(float)
    for row, p in enumerate(wanted):
        step = 0.02 * np.eye(6)[p]
        values = [
            render_stack(kind, theta + k * step, window, grid, cube)[0, 0].astype(float)
            for k in (-2, -1, 1, 2)
        ]
        numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 0.24
        scale = np.abs(numeric).max()
        noise = 2e-6 * stack[0].max() / 0.02
        assert np.abs(stack[1 + row] - numeric).max() < 1e-3 * scale + noise


def test_whole_pixel_shift():
    "Moving a source by whole pixels moves its image by whole pixels."
    psf = moffat_psf(3.0)
    image, moved = ours(Kind.EXP, psf, 0.2, 0.1, 2.0, 0.5, 40), ours(Kind.EXP, psf, 3.2, -1.9, 2.0, 0.5, 40)
    assert np.abs(np.roll(image, (-2, 3), (0, 1))[5:-5, 5:-5] - moved[5:-5, 5:-5]).max() < 1e-6


@pytest.mark.parametrize("theta", [-90, -67.5, -45, -20, 0, 30, 60, 89])
def test_angle(theta):
    "THETA is counter-clockwise from +x toward +y: second moments of the image agree."
    image = ours(Kind.EXP, moffat_psf(3.0), 0.1, -0.2, 3.0, 0.3, theta)
    y, x = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1] - np.array([-0.2, 0.1])[:, None, None]
    window = np.exp(-(x**2 + y**2) / 60)
    xx, yy, xy = ((image * window * m).sum() for m in (x * x, y * y, x * y))
    measured = np.rad2deg(np.arctan2(2 * xy, xx - yy)) / 2
    assert abs((measured - theta + 90) % 180 - 90) < 0.05
