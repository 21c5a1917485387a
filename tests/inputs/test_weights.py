"""Weights with the photons of the sources: fluxes and their errors with and without the share taken out."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from small_inputs import Field

from tract7dt.core.errors import Problems
from tract7dt.inputs.headers import read_bands
from tract7dt.inputs.weights import photon_share

SIDE, STEP, SKY, GAIN = 1600, 32, 6.0, 1.9
HALF = 12


def templates():
    """Places of stars on a jittered grid, and their Moffat profiles (FWHM 3.2 pix) in windows."""
    rng, grid = np.random.default_rng(1), np.arange(20, SIDE - 20, STEP)
    x, y = (g.ravel() + rng.uniform(-4, 4, g.size) for g in np.meshgrid(grid, grid))
    rows, columns = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
    cx, cy = np.rint(x).astype(int), np.rint(y).astype(int)
    alpha = 3.2 / (2 * np.sqrt(2 ** (1 / 3.3) - 1))
    square = (columns - (x - cx)[:, None, None]) ** 2 + (rows - (y - cy)[:, None, None]) ** 2
    profile = (1 + square / alpha**2) ** -3.3
    return cx, cy, profile / profile.sum(axis=(1, 2), keepdims=True), rng


def cut(image, cx, cy):
    return np.stack([image[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1] for x, y in zip(cx, cy)])


def measured(data, invvar, profile):
    """Flux and error of each star by its profile: noise of the sky, and photons of the star itself."""
    strength = (invvar * profile**2).sum(axis=(1, 2))
    flux = (invvar * profile * data).sum(axis=(1, 2)) / strength
    photons = np.maximum(flux, 0)[:, None, None] * profile / GAIN
    variance = (invvar**2 * profile**2 * (SKY**2 + photons)).sum(axis=(1, 2)) / strength**2
    return flux, np.sqrt(variance), 1 / np.sqrt(strength)


@pytest.fixture(scope="module")
def scene():
    """Most stars have S/N 5 to 20, every twelfth is bright."""
    cx, cy, profile, rng = templates()
    flux = 10 ** rng.uniform(np.log10(150), np.log10(600), len(cx))
    flux[::12] = 10 ** rng.uniform(3.5, 5, len(flux[::12]))
    light = np.zeros((SIDE, SIDE))
    for x, y, f, p in zip(cx, cy, flux, profile):
        light[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1] += f * p
    image = light + rng.normal(size=light.shape) * np.sqrt(SKY**2 + light / GAIN)
    return cx, cy, profile, flux, light, image


@pytest.mark.parametrize("kind", ["noisy", "clipped", "smooth"])
@pytest.mark.parametrize("pedestal", [0.0, 400.0])
def test_the_share_is_taken_out(tmp_path, scene, kind, pedestal):
    cx, cy, profile, flux, light, image = scene
    counted = {"noisy": image, "clipped": np.maximum(image, 0), "smooth": light}[kind]
    weight = 1 / np.maximum(SKY**2 + counted / GAIN, 1)
    field = Field(tmp_path, bands=(), shape=(SIDE, SIDE))
    field.image("m400", (image + pedestal).astype("f4"), SKYSIG=SKY, EGAIN=GAIN, SATURATE=None)
    fits.writeto(tmp_path / "m400_weight.fits", weight.astype("f4"))
    field.list("m400.fits")
    cfg = field.cfg(inputs=dict(weight_suffix="_weight.fits", weight_type="invvar"))
    (band,) = read_bands(cfg, Problems())
    share = photon_share(band)
    assert share.slope * GAIN == pytest.approx(1, abs=0.03)
    data, faint = cut(image, cx, cy), flux < 1000
    best, _, _ = measured(data, np.full(data.shape, SKY**-2), profile)
    found, error, sky_error = measured(data, cut(replace(band, photons=share).read().invvar, cx, cy), profile)
    as_they_are, _, _ = measured(data, cut(band.read().invvar, cx, cy), profile)
    change = np.mean((found / best - 1)[faint])
    before = np.mean((as_they_are / best - 1)[faint])
    pulls = ((found - flux) / error)[faint]
    print(kind, pedestal, f"bias {before:+.4f} -> {change:+.5f}, pulls {pulls.std():.3f}")
    assert abs(change) < 1e-3 and 0.95 < pulls.std() < 1.05
    assert kind == "smooth" or before < -5e-3
    assert np.median(sky_error[faint]) == pytest.approx(
        SKY * np.median((profile**2).sum((1, 2)) ** -0.5), rel=0.01
    )


def test_weights_of_the_sky_are_left_alone(tmp_path, scene):
    """Also where they vary over the frame, and between pixels."""
    image = scene[-1]
    rng = np.random.default_rng(4)
    weight = SKY**-2 * np.linspace(0.5, 1.5, SIDE) * np.exp(rng.normal(0, 0.1, image.shape))
    field = Field(tmp_path, bands=(), shape=(SIDE, SIDE))
    field.image("m400", image.astype("f4"), SKYSIG=SKY, EGAIN=GAIN, SATURATE=None)
    fits.writeto(tmp_path / "m400_weight.fits", weight.astype("f4"))
    field.list("m400.fits")
    cfg = field.cfg(inputs=dict(weight_suffix="_weight.fits", weight_type="invvar"))
    assert photon_share(read_bands(cfg, Problems())[0]) is None
