"""Bands that do not lie on each other: the stars of the ePSFs say how, and fluxes are right all the same.

Three bands of isolated stars are drawn by GalSim, one of them off by a known polynomial. Tolerances: places
of 36 stars of S/N 100 to 1000 give a constant to 0.003 pixels; a hundredth is asked for.
"""

from dataclasses import replace

import galsim
import numpy as np
import pandas as pd
import pytest
from small_inputs import Field, rows_at

from tract7dt.core.reading import read_csv
from tract7dt.epsf.build import build_epsf, first_registration, look_at_stars, write_epsf
from tract7dt.epsf.model import BandPSF
from tract7dt.epsf.patch_psf import psf_for_patch
from tract7dt.epsf.registration import StarPlaces, register, registration_words, star_places
from tract7dt.fit.engine import fit
from tract7dt.fit.problem import BandOffset
from tract7dt.patches.geometry import build_patches
from tract7dt.patches.payload import build_patch_inputs
from tract7dt.patches.problem import fit_problem, psfs_of
from tract7dt.pipeline.estimate import band_offset_lines
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.layout import REGISTRATION, Layout

pytestmark = pytest.mark.xdist_group("registration")
BANDS, SHAPE = ("m400", "m425", "m450"), (280, 280)
PSFS = [galsim.Moffat(beta=3.3, fwhm=fwhm) for fwhm in (3.2, 3.6, 3.0)]
SHIFT = BandOffset(np.array([[0.5], [-0.1]]), SHAPE)
TILT = BandOffset(np.array([[0.1, 0.2, 0.0], [0.0, 0.0, -0.15]]), SHAPE)


def places():
    rng = np.random.default_rng(11)
    y, x = (v.ravel() for v in np.mgrid[38:245:41, 38:245:41].astype(float))
    return x + rng.uniform(-4, 4, x.size), y + rng.uniform(-4, 4, x.size), 10 ** rng.uniform(4.2, 5.2, x.size)


def image_of(profile, seed: int, offset: BandOffset | None):
    "Thirty-six stars with photon noise and a sky of 5 counts, moved by an offset."
    image = galsim.ImageD(SHAPE[1], SHAPE[0])
    for x, y, flux in zip(*places()):
        dx, dy = (0, 0) if offset is None else offset.at(x, y)
        around = galsim.BoundsI(int(x) - 60, int(x) + 60, int(y) - 60, int(y) + 60) & image.bounds
        where = galsim.PositionD(x + dx + 1, y + dy + 1)
        image[around] += profile.withFlux(flux).drawImage(galsim.ImageD(around), center=where, scale=1.0)
    noise = np.random.default_rng(seed).normal(size=SHAPE) * np.sqrt(25 + np.maximum(image.array, 0) / 2)
    return (image.array + noise).astype("f4")


def tile_of(folder, offset: BandOffset | None, **settings):
    "Tile and configuration of the scene; the second band is moved."
    folder.mkdir(exist_ok=True)
    field = Field(folder, bands=BANDS, shape=SHAPE)
    for seed, (band, profile) in enumerate(zip(BANDS, PSFS)):
        moved = offset if band == "m425" else None
        field.image(band, image_of(profile, seed, moved), SKYSIG=5.0, SATURATE=1e6, PEEING=3.2)
    x, y, _ = places()
    field.catalog(rows_at(np.column_stack([x, y]), SHAPE, TYPE="STAR"))
    cfg = field.cfg(epsf=dict(epsf_ngrid=1, ngrid=2), **settings)
    return load_inputs(cfg), cfg


def against_first(grid, x, y):
    "Offset of the second band against the first and the third at places, [2, N]."
    at = [grid.bands[band].registration.offset.at(x, y) for band in BANDS]
    return at[1] - (at[0] + at[2]) / 2


def fluxes(tile, grid, cfg):
    "Fitted over true fluxes of all stars, [S, B], and chi2 over pixels."
    ratio, chi2, (x, y, true) = [], [], places()
    for payload in build_patch_inputs(tile, build_patches(tile, cfg), cfg):
        result = fit(fit_problem(payload, psfs_of(payload, grid, cfg), cfg))
        own = ~payload.sources["_is_halo_source"].to_numpy(bool)
        for s in np.flatnonzero(own):
            roi = payload.patch.roi
            star = np.argmin(np.hypot(x - result.x[s] - roi.x0, y - result.y[s] - roi.y0))
            ratio.append(result.flux[s] / [true[star] * band.scale for band in payload.bands])
            chi2.append(result.chi2[s] / result.npix[s])
    return np.array(ratio), np.array(chi2)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    tile, cfg = tile_of(tmp_path_factory.mktemp("shifted"), SHIFT)
    return tile, cfg, build_epsf(tile, cfg, workers=1)


def test_a_shift_comes_back(shifted):
    _, _, grid = shifted
    assert np.allclose(against_first(grid, 140, 140), SHIFT.at(140, 140), atol=0.01)
    table = grid.registration.table().set_index("band")
    assert table.loc["m425", "before"] > 0.2 and (table["after"] < 0.02).all()
    assert (table["scatter"] < 0.02).all()


def test_fluxes_are_right_where_a_band_is_off(shifted):
    tile, cfg, grid = shifted
    ratio, chi2 = fluxes(tile, grid, cfg)
    assert np.allclose(np.median(ratio, axis=0), 1, atol=0.003)
    assert (np.median(chi2, axis=0) < 1.2).all()
    apart = {
        band: replace(psf, registration=replace(psf.registration, offset=None))
        for band, psf in grid.bands.items()
    }
    ratio, chi2 = fluxes(tile, replace(grid, bands=apart), cfg)
    assert np.median(ratio[:, 1]) < 0.999 and np.median(chi2[:, 1]) > 2  # without it


def test_a_distortion_comes_back(tmp_path):
    tile, cfg = tile_of(tmp_path, TILT)
    grid = build_epsf(tile, cfg, workers=1)
    x, y = np.meshgrid([40, 140, 240], [40, 140, 240])
    assert np.allclose(against_first(grid, x, y), TILT.at(x, y), atol=0.02)


def test_it_is_kept_and_read_back(shifted, tmp_path):
    _, cfg, grid = shifted
    layout = Layout.of(cfg.outputs.model_copy(update={"epsf_dir": tmp_path}))
    write_epsf(grid, layout)
    again = BandPSF.load(layout.psf_model("m425")).registration
    assert np.allclose(again.offset.coef, grid.bands["m425"].registration.offset.coef)
    psf = psf_for_patch(layout, "m425", "r00_c00", 100.0, 100.0, cfg, None)
    assert np.allclose(psf.offset.at(50, 60), grid.bands["m425"].registration.offset.at(50, 60))
    assert psf.error.position == grid.bands["m425"].registration.scatter
    table = read_csv(layout.registration_csv, "", REGISTRATION)
    assert list(table["band"]) == list(BANDS)
    write_epsf(replace(grid, registration=None), layout)
    assert not layout.registration_csv.exists()


def test_check_tells_at_a_first_look(shifted):
    tile, cfg, _ = shifted
    seen = look_at_stars(tile, 4.0)
    [line] = band_offset_lines(tile, cfg, seen)
    assert "m425 by up to 0.3" in line  # a third of it belongs to the common frame
    off = cfg.model_copy(update={"registration": cfg.registration.model_copy(update={"bands": "none"})})
    assert band_offset_lines(tile, off, seen) == []
    assert first_registration(seen, tile.shape).table()["stars"].min() > 20


def test_nothing_is_measured_when_not_asked_for(tmp_path):
    tile, cfg = tile_of(tmp_path, SHIFT, registration=dict(bands="none"))
    grid = build_epsf(tile, cfg, workers=1)
    assert grid.registration is None
    assert all(psf.registration.offset is None for psf in grid.bands.values())


def simulated(stars: int, bands: int, seed: int, scatter: float = 0.0):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 999, (2, stars))
    error = rng.lognormal(np.log(0.03), 0.7, (stars, bands))
    moves = rng.normal(size=(stars, bands, 2)) * np.hypot(error, scatter)[..., None]
    return StarPlaces(x, y, moves, error, tuple("abcdefghi"[:bands]))


@pytest.mark.parametrize("stars", [1, 3, 8, 12, 40, 120])
@pytest.mark.parametrize("bands", [2, 6])
def test_noise_is_no_offset(stars, bands):
    "Whatever is found where nothing is off stays below a twentieth of a pixel, and mostly it is nothing."
    largest = [
        max(one.largest for one in register(simulated(stars, bands, seed), (1000, 1000)).bands.values())
        for seed in range(6)
    ]
    assert np.median(largest) == 0 and max(largest) < 0.06


def test_a_band_with_few_stars_is_moved_as_a_whole():
    few = simulated(60, 4, 5)
    few.moves[:, 2] += 0.4
    few.moves[4:, 2] = np.nan
    found = register(few, (1000, 1000)).bands
    apart = found["c"].offset.at(500, 500) - found["a"].offset.at(500, 500)
    assert found["c"].degree == 0 and np.allclose(apart, 0.4, atol=0.05)


def test_a_band_without_stars_is_named_and_stays():
    lost = simulated(60, 3, 5)
    lost.moves[:, 1] += 0.3
    lost.moves[:, 2] = np.nan
    found = register(lost, (1000, 1000))
    assert found.bands["c"].offset is None and found.bands["c"].nstars == 0
    assert "no star in c" in registration_words(found) and "nan" not in registration_words(found)
    assert np.isfinite(found.bands["b"].after)


def test_stars_that_no_two_bands_share():
    apart = simulated(20, 2, 5)
    apart.moves[:10, 0] = np.nan
    apart.moves[10:, 1] = np.nan
    found = register(apart, (1000, 1000))
    assert all(one.offset is None for one in found.bands.values())
    assert "no star is seen in two of them" in registration_words(found)


def test_wrong_places_of_single_stars_do_not_count():
    places = simulated(60, 4, 7)
    places.moves[:5, 1] += [1.5, -1.0]  # blends
    assert max(one.largest for one in register(places, (1000, 1000)).bands.values()) < 0.06


def test_scatter_of_single_stars_is_told():
    found = register(simulated(120, 6, 9, scatter=0.08), (1000, 1000))
    assert np.allclose([one.scatter for one in found.bands.values()], 0.08, atol=0.02)


def test_no_stars_at_all():
    none = pd.DataFrame({name: np.zeros(0) for name in ("x", "y", "x_fit", "y_fit", "xy_err")})
    found = register(star_places({"a": none, "b": none}), (100, 100))
    assert all(one.offset is None for one in found.bands.values())
    assert found.table().shape == (2, len(REGISTRATION))
