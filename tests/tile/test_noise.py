"""Noise of blank sky: the factor against what follows from the weights of a resampling."""

import numpy as np
import pytest
from scipy.ndimage import convolve1d
from small_inputs import Field

from tract7dt.tile.load import load_inputs
from tract7dt.tile.noise import WIDTHS, Template, write_noise
from tract7dt.workdir.layout import Layout

SHAPE, FWHM = (860, 860), 3.2
PIXEL = np.array([0, 0, 0, 1.0, 0, 0, 0])


def lanczos(shift):
    "Weights of LANCZOS3 interpolation along one axis."
    x = np.arange(-3, 4) - shift
    weight = np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weight / weight.sum()


def resampled(seed, weight):
    image = np.random.default_rng(seed).normal(size=SHAPE)
    return convolve1d(convolve1d(image, weight, axis=0), weight, axis=1).astype("f4")


def expected(weight, template):
    "Scatter of a template's flux over that of independent pixels of noise 1."
    distance = np.hypot(*(np.mgrid[:161, :161] - 80))
    profile = sum(value * np.exp(-0.5 * (distance / sigma) ** 2) for value, sigma in template.parts)
    spread = convolve1d(convolve1d(profile, weight[::-1], axis=0), weight[::-1], axis=1)
    return np.sqrt((spread**2).sum() / (profile**2).sum())


def measured(folder, images, **cards):
    "The bands of a tile of these images."
    field = Field(folder, bands=tuple(images), shape=SHAPE)
    for name, image in images.items():
        field.image(name, image, PEEING=FWHM, **cards.get(name, {}))
    return load_inputs(field.cfg())


class TestFactor:
    """Ten thousand places leave one or two percent."""

    @pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
    def test_resampled(self, tmp_path, shift):
        weight = lanczos(shift) if shift else PIXEL
        images = {f"m4{k}0": resampled(10 * k, weight) for k in range(5)}
        noise = [band.noise for band in measured(tmp_path, images).bands]
        factors = np.mean([model.factor for model in noise], axis=0)
        truth = [(weight**2).sum(), *(expected(weight, Template(FWHM * width)) for width in WIDTHS)]
        assert factors[:3] == pytest.approx(truth[:3], rel=0.02)
        assert factors == pytest.approx(truth, rel=0.04)

    def test_wrong_header(self, tmp_path):
        images = {"m400": resampled(1, PIXEL), "m425": resampled(2, PIXEL)}
        wrong, right = measured(tmp_path, images, m400=dict(SKYSIG=0.5)).bands
        assert wrong.noise.factor[:2] == pytest.approx([2, 2], rel=0.05)
        assert right.noise.factor[:2] == pytest.approx([1, 1], rel=0.05)

    def test_sources_and_slopes_do_not_count(self, tmp_path):
        rng, images = np.random.default_rng(5), {}
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        light = np.zeros(SHAPE)
        for column, row, flux in zip(*rng.uniform(20, 840, (2, 60)), 10 ** rng.uniform(1.5, 4, 60)):
            light += flux * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 3.7) / 11.6
        for k in range(5):
            images[f"m4{k}0"] = (resampled(20 + k, PIXEL) + light + 5 + 2 * x / 860).astype("f4")
        factors = np.mean([band.noise.factor for band in measured(tmp_path, images).bands], axis=0)
        assert factors[:3] == pytest.approx([1, 1, 1], rel=0.03)


def test_too_little_to_measure(tmp_path):
    field = Field(tmp_path, shape=(90, 90))
    tile = load_inputs(field.cfg())
    assert all(band.noise is None for band in tile.bands)
    layout = Layout.of(field.cfg().outputs)
    write_noise(tile, layout)
    assert not layout.noise_csv.exists()


def test_white_is_not_measured(tmp_path):
    field = Field(tmp_path)
    assert all(b.noise is None for b in load_inputs(field.cfg(noise=dict(correlation="white"))).bands)
