"""The mask of bright sources that the catalog does not hold."""

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from small_inputs import Field, noise, rows_at

from tract7dt.tile.bright_mask import mask_bright_sources, write_bright_mask
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.layout import Layout

SHAPE = (240, 320)


def gaussian(x, y, flux, a, b=None, theta=0.0):
    b = b or a
    yy, xx = np.indices(SHAPE)
    c, s = np.cos(theta), np.sin(theta)
    along, across = (xx - x) * c + (yy - y) * s, (yy - y) * c - (xx - x) * s
    return flux / (2 * np.pi * a * b) * np.exp(-((along / a) ** 2) / 2 - (across / b) ** 2 / 2)


@pytest.fixture
def masked(tmp_path):
    """The masked tile of a scene: model image, catalog, sections of the configuration."""

    def call(model, table, band_cards=None, **sections):
        field = Field(tmp_path, shape=SHAPE)
        for i, name in enumerate(field.bands):
            field.image(name, (model + noise(i, SHAPE)).astype("f4"), **(band_cards or {}))
        field.catalog(table)
        cfg = field.cfg(**sections)
        return mask_bright_sources(load_inputs(cfg), cfg), cfg

    return call


def test_only_what_is_not_in_the_catalog(masked):
    model = gaussian(80, 100, 5000, 2) + gaussian(220, 120, 5000, 2)
    tile, _ = masked(model, rows_at([(80, 100), (226, 121), (20, 20)], SHAPE))
    assert tile.bright_mask[120, 220] and not tile.bright_mask[100, 80]
    assert list(tile.catalog.affected_by_bright_mask) == [False, True, False]


def test_a_pedestal_is_no_source(masked):
    tile, _ = masked(500 + gaussian(80, 100, 5000, 2), rows_at([(80, 100)], SHAPE))
    assert not tile.bright_mask.any() and len(tile.bright_sources) == 1


def test_a_large_galaxy_is_not_masked_with_its_own_entry(masked):
    galaxy = gaussian(160, 120, 60000, 12, 5, 0.6) + gaussian(180, 134, 6000, 2.5)
    table = rows_at([(160, 120)], SHAPE, TYPE="EXP", Re=14.0, ELL=0.5, THETA=np.degrees(0.6))
    tile, _ = masked(galaxy, table, bright_mask=dict(deblend_cont=0.0001))
    assert (
        len(tile.bright_sources) >= 2
        and not tile.bright_mask[120, 160]
        and not tile.catalog.affected_by_bright_mask[0]
    )


def test_an_off_centre_entry_of_an_extended_source(masked):
    tile, _ = masked(gaussian(160, 120, 60000, 10), rows_at([(166, 122)], SHAPE))
    assert not tile.bright_mask.any()


def test_a_faint_neighbour_does_not_save_a_bright_star(masked):
    tile, _ = masked(
        gaussian(160, 120, 1e6, 2), rows_at([(172, 120)], SHAPE, TYPE="STAR"), band_cards=dict(SATURATE=1e9)
    )
    assert tile.bright_mask[120, 160]


def test_excluded_rows_do_not_count(masked):
    tile, _ = masked(gaussian(160, 120, 1e6, 2), rows_at([(160, 120), (20, 20)], SHAPE, TYPE="STAR"))
    assert (
        tile.catalog.excluded_saturation[0]
        and tile.bright_mask[120, 160]
        and tile.catalog.affected_by_bright_mask[0]
    )


def test_ellipse_and_dilation(masked):
    model, table = gaussian(160, 120, 20000, 6, 2), rows_at([(20, 20)], SHAPE)
    tile, _ = masked(model, table, bright_mask=dict(min_radius_pix=0, dilate_pix=0))
    grown, _ = masked(model, table, bright_mask=dict(min_radius_pix=0, dilate_pix=2))
    source = tile.bright_sources.iloc[0]
    assert tile.bright_mask.sum() == pytest.approx(np.pi * 9 * source.a * source.b, rel=0.05)
    rows = np.flatnonzero(tile.bright_mask.any(1))
    assert np.array_equal(np.flatnonzero(grown.bright_mask.any(1)), np.arange(rows[0] - 2, rows[-1] + 3))


def test_off_and_empty(masked):
    tile, _ = masked(np.zeros(SHAPE), rows_at([(20, 20)], SHAPE))
    assert not tile.bright_mask.any() and list(tile.catalog.affected_by_bright_mask) == [False]
    off, _ = masked(gaussian(160, 120, 20000, 6), rows_at([(20, 20)], SHAPE), bright_mask=dict(enabled=False))
    assert off.bright_mask is None


def test_nan_pixels(masked):
    model = gaussian(160, 120, 20000, 3)
    model[110:130, 158:161] = np.nan
    tile, _ = masked(model, rows_at([(20, 20)], SHAPE))
    assert tile.bright_mask[120, 155]


def test_file(masked):
    tile, cfg = masked(
        gaussian(160, 120, 20000, 3) + gaussian(60, 60, 1e6, 2), rows_at([(60, 60), (20, 20)], SHAPE)
    )
    layout = dataclasses.replace(Layout.of(cfg.outputs), work_dir=cfg.source.parent / "work")
    write_bright_mask(tile, layout)
    with fits.open(layout.bright_mask_fits) as hdus:
        assert hdus[0].header["EXTNAME"] == "BRIGHT_MASK" and hdus[0].data.dtype == np.uint8
        np.testing.assert_array_equal(hdus[0].data == 1, tile.bright_mask | tile.saturated)


def test_twice_the_same(masked):
    model, table = gaussian(160, 120, 20000, 3), rows_at([(20, 20)], SHAPE)
    assert masked(model, table)[0].bright_mask.tobytes() == masked(model, table)[0].bright_mask.tobytes()
