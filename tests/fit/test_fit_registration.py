"""A band whose sources lie elsewhere, drawn by GalSim: with its offset the fit is as good as without any."""

from dataclasses import replace

import numpy as np
import pytest
from known_truth import CAMERAS, catalogued, isolated, photograph, psf_stamp

from tract7dt.fit.engine import fit
from tract7dt.fit.model import Scene, draw
from tract7dt.fit.parameters import Start
from tract7dt.fit.problem import BandData, BandOffset, FitOptions, FitProblem, Kind

SNR = 300


def offsets(side):
    "None for the first band, a shift, a tilt, and what varies quadratically for the others."
    return [
        None,
        BandOffset(np.array([[0.5], [-0.3]]), (side, side)),
        BandOffset(np.array([[0.1, 0.3, 0.0], [0.0, -0.2, 0.2]]), (side, side)),
        BandOffset(np.array([[0.0, 0, 0, 0.4, 0, 0], [0, 0, 0, 0, 0.3, 0]]), (side, side)),
    ][: len(CAMERAS)]


def photographed(kind: Kind, moved: bool = True):
    "Bands without noise, true fluxes, true sources and start values."
    true, side = isolated(kind, 3, 4)
    bands, fluxes = [], []
    for camera, offset in zip(CAMERAS, offsets(side)):
        dx, dy = (0, 0) if offset is None or not moved else offset.at(true.x, true.y)
        aim = np.full(len(true), SNR)
        image, flux, _ = photograph(replace(true, x=true.x + dx, y=true.y + dy), aim, side, camera)
        noise = np.full(image.shape, camera.sky**-2)
        where = offset if moved else None
        bands.append(BandData(f"m{len(bands)}", image, noise, psf_stamp(camera), camera.gain, offset=where))
        fluxes.append(flux)
    return bands, np.array(fluxes).T, true, catalogued(true, np.random.default_rng(4))


@pytest.mark.parametrize("kind", [Kind.STAR, Kind.EXP])
def test_fluxes_and_positions(kind):
    bands, flux, true, start = photographed(kind)
    result = fit(FitProblem(bands, start))
    still, same_flux, _, _ = photographed(kind, moved=False)
    as_good = fit(FitProblem(still, start))
    assert np.allclose(result.flux / flux, as_good.flux / same_flux, atol=1e-3)
    assert np.abs(np.median(result.flux / flux, axis=0) - 1).max() < 1e-3
    assert np.hypot(result.x - true.x, result.y - true.y).max() < 0.01  # those common to all bands
    assert np.abs(result.x_err / as_good.x_err - 1).max() < 0.02


def test_without_it_fluxes_are_wrong():
    bands, flux, _, start = photographed(Kind.STAR)
    result = fit(FitProblem([replace(band, offset=None) for band in bands], start))
    assert (np.median(result.flux / flux, axis=0) < 0.997).any()


def test_in_subfields_and_in_single_bands():
    bands, flux, _, start = photographed(Kind.STAR)
    result = fit(FitProblem(bands, start, FitOptions(max_group=5)))
    assert result.subfields > 1
    assert np.allclose(result.flux / flux, 1, atol=2e-3)
    alone = fit(FitProblem(bands[1:2], start))
    assert np.allclose(alone.flux[:, 0] / flux[:, 1], 1, atol=2e-3)


def test_the_model_is_where_the_light_is():
    bands, _, true, start = photographed(Kind.STAR)
    problem = FitProblem(bands, start)
    result = fit(problem)
    for band, model in zip(bands, result.model):
        assert np.abs(band.image - model).max() < 0.01 * band.image.max()
    end = Start.of(replace(start, x=result.x, y=result.y))
    image = np.zeros_like(result.model)
    draw(Scene.fitted(problem, end, result.flux.astype(np.float32)), image)
    assert np.allclose(image + result.sky[:, None, None], result.model, atol=1e-3 * result.model.max())
