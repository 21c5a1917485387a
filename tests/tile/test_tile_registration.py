"""A catalog that is off against images that GalSim drew: the offset comes back, and nothing else is moved."""

from functools import lru_cache

import galsim
import numpy as np
import pandas as pd
import pytest
from small_inputs import Field, rows_at

from tract7dt.tile.load import load_inputs

SHAPE = (600, 700)
CENTRE = np.array([SHAPE[1] - 1, SHAPE[0] - 1]) / 2


@lru_cache
def stars():
    "Places of 120 stars, and their light."
    rng = np.random.default_rng(8)
    places = np.column_stack([rng.uniform(15, 685, 120), rng.uniform(15, 585, 120)])
    image = galsim.ImageD(galsim.BoundsI(0, SHAPE[1] - 1, 0, SHAPE[0] - 1))
    for (x, y), flux in zip(places, 10 ** rng.uniform(2.7, 4, 120)):
        stamp = galsim.ImageD(galsim.BoundsI(round(x) - 20, round(x) + 20, round(y) - 20, round(y) + 20))
        galsim.Moffat(beta=3.5, fwhm=3.0).withFlux(flux).drawImage(
            stamp, scale=1, center=galsim.PositionD(x, y)
        )
        common = stamp.bounds & image.bounds
        image[common] += stamp[common]
    return places, image.array


def loaded(folder, catalog_places, **sections):
    light = stars()[1]
    field = Field(folder, shape=SHAPE)
    for k, band in enumerate(field.bands):
        noise = np.random.default_rng(k).normal(size=SHAPE)
        field.image(band, (light + noise).astype("f4"), SATURATE=1e6)
    field.catalog(rows_at(catalog_places, SHAPE))
    return load_inputs(field.cfg(**sections))


def moved(shift, angle=0.0):
    "The places of the stars turned about the middle of the frame, and shifted."
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return CENTRE + (stars()[0] - CENTRE) @ np.array([[c, s], [-s, c]]) + shift


def left(tile):
    "What start positions are off, pixels [N, 2]."
    return tile.catalog[["x_pix_white", "y_pix_white"]].to_numpy() - stars()[0]


@pytest.mark.parametrize(
    "shift, angle",
    [((0.5, 0), 0), ((-1.2, 1.6), 0), ((4, 0), 0), ((9, -11), 0), ((0, 0), 1.0), ((2, 3), -1.0)],
)
def test_offset_comes_back(tmp_path, shift, angle):
    tile = loaded(tmp_path, moved(shift, angle))
    assert tile.registration.applied
    assert np.abs(left(tile)).max() < 0.03


def test_a_catalog_that_is_right_is_not_moved(tmp_path):
    places = stars()[0] + np.random.default_rng(3).normal(0, 0.1, (120, 2))
    tile = loaded(tmp_path, places)
    apart = loaded(tmp_path, places, registration=dict(catalog="none"))
    assert not tile.registration.applied and apart.registration is None
    pd.testing.assert_frame_equal(tile.catalog, apart.catalog)


def test_another_field_is_not_taken_for_this_one(tmp_path):
    for seed in range(3):
        places = np.random.default_rng(seed).uniform(15, 585, (120, 2))
        assert not loaded(tmp_path, places).registration.applied


def test_a_few_rows_do_not_move_the_catalog(tmp_path):
    tile = loaded(tmp_path, moved((3, 0))[:4])
    assert not tile.registration.applied and "too few" in tile.registration.text


def test_most_rows_faint(tmp_path):
    "A deep catalog: ten rows without a bright source for each that has one."
    faint = np.random.default_rng(4).uniform(5, 595, (1200, 2))
    tile = loaded(tmp_path, np.concatenate([moved((2.5, -1.5)), faint]))
    assert tile.registration.applied
    assert np.abs(left_of_first(tile)).max() < 0.05


def left_of_first(tile):
    return tile.catalog[["x_pix_white", "y_pix_white"]].to_numpy()[:120] - stars()[0]
