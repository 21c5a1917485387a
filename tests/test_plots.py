"Pictures: what each of them shows, and that they leave nothing behind."

from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tract7dt.plots.base import PALETTE, colour_image, mosaic, paint, residual_norm, sky_noise, sky_norm
from tract7dt.plots.calibration import zp_vs_mag
from tract7dt.plots.epsf import CellStamp, enclosed_light, epsf_sheet, growth_curve, show_stamps
from tract7dt.plots.field import bright_mask_overlay, source_groups, white_overlay
from tract7dt.plots.patch import (BandView, colour_triptych, data_model_residual, paint_view, patch_overview,
                                  source_montage, white_view, window)
from tract7dt.sky import Box

SHAPE = (60, 80)


def draw(figure: Figure) -> Figure:
    "Render a figure the way a run does."
    figure.savefig(BytesIO(), dpi=40)
    return figure


@pytest.fixture
def views():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SHAPE[0], :SHAPE[1]]
    model = 300 * np.exp(-((x - 30) ** 2 + (y - 20) ** 2) / 8) + 1.0
    masked = np.zeros(SHAPE, bool)
    masked[5:9, 5:9] = True
    return [BandView(name, model + rng.normal(0, s, SHAPE), model, masked & (name == "g"), s) for name, s in (("g", 1.0), ("r", 2.0))]


@pytest.fixture
def fit(views):
    sources = pd.DataFrame({"ID": ["00001", "NA"], "x_pix_patch": [30.4, 70.0], "y_pix_patch": [20.0, 50.0],
                            "x_pix_patch_fit": [30.0, np.nan], "y_pix_patch_fit": [20.0, np.nan],
                            "stype_fit": ["star", "exp"], "_is_halo_source": [False, True]})
    cuts = [SimpleNamespace(name=v.name, image=v.data, mask=v.masked.astype(np.uint8), sky_sigma=v.noise) for v in views]
    patch = SimpleNamespace(tag="r00_c01_pr00_pc02", base=Box(110, 150, 210, 240), roi=Box(100, 180, 200, 260))
    return SimpleNamespace(payload=SimpleNamespace(patch=patch, bands=cuts), sources=sources,
                           result=SimpleNamespace(model=np.stack([v.model for v in views])))


@pytest.fixture
def tile():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [150, 2], [40, 30], [-1.4e-4, 1.4e-4]
    white = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    white[3, 4] = np.nan
    catalog = pd.DataFrame({"TYPE": ["STAR", " exp", "STAR", "blob", "DEV", "STAR"], "x_pix_white": [5, 20, 30, 40, 50, np.nan],
                            "y_pix_white": [5, 20, 30, 40, 50, np.nan], "excluded_any": [False] * 4 + [True] * 2,
                            "excluded_saturation": [False] * 4 + [True, False], "excluded_crop": [False] * 5 + [True],
                            "_is_injected_gaia": [False, False, True, False, False, False],
                            "affected_by_bright_mask": [True] + [False] * 3 + [True, False]})
    mask = np.zeros(SHAPE, bool)
    mask[:10, :10] = True
    return SimpleNamespace(white=white, wcs=wcs, shape=SHAPE, catalog=catalog, bright_mask=mask)


def test_masked_and_missing_pixels_have_one_colour():
    image = np.array([[np.nan, 1.0], [np.inf, 2.0]])
    colours = paint(image, sky_norm(1.0), np.array([[False, True], [False, False]]))
    np.testing.assert_allclose(colours[[0, 0, 1], [0, 1, 0]], [to_rgb(PALETTE.masked)] * 3, atol=1e-6)
    assert not np.allclose(colours[1, 1], to_rgb(PALETTE.masked))


def test_noise_and_stretch_survive_empty_and_constant_images():
    assert sky_noise(np.full((4, 4), np.nan)) == sky_noise(np.zeros((4, 4))) == 1.0
    assert sky_norm(1.0, np.nan).vmax == sky_norm(1.0).vmax == 25


def test_equal_significance_is_equal_grey():
    assert sky_norm(1.0)(5.0) == pytest.approx(sky_norm(7.0)(35.0))
    assert residual_norm()(-1.0) + residual_norm()(1.0) == pytest.approx(1)


def test_mosaic_puts_the_first_row_on_top():
    panels = [[np.full((2, 3, 3), v) for v in row] for row in ((0.1, 0.2), (0.3, 0.4))]
    made = mosaic(panels, gap=1)
    for row in range(2):
        for column in range(2):
            x, y = made.corners[row, column]
            np.testing.assert_allclose(made.colours[y:y + 2, x:x + 3], panels[row][column], rtol=1e-6)
    assert made.corners[0, 0, 1] > made.corners[1, 0, 1]


def test_colour_image_is_a_picture():
    bands = np.random.default_rng(0).normal(size=(3, 9, 9)) * 100
    colours = colour_image(*bands, masked=np.eye(9, dtype=bool))
    assert colours.min() >= 0 and colours.max() <= 1
    np.testing.assert_allclose(colours[3, 3], to_rgb(PALETTE.masked), atol=1e-6)


def test_residual_is_in_units_of_the_noise(views):
    assert views[0].chi == pytest.approx(1, abs=0.05)
    noisy = BandView("g", views[0].data, views[0].model, views[0].masked, np.full(SHAPE, 2.0))
    assert noisy.chi == pytest.approx(0.5, abs=0.03)


def test_white_view_ignores_masked_pixels_of_a_band(views):
    white = white_view(tuple(views))
    assert not white.masked.any()
    np.testing.assert_allclose(white.data[6, 6], views[1].data[6, 6] / 2, rtol=1e-12)
    both = white_view(tuple(BandView(v.name, v.data, v.model, np.ones(SHAPE, bool), v.noise) for v in views))
    assert both.masked.all() and np.isnan(both.chi)
    assert len(paint_view(both)) == 3


def test_window_beyond_the_region_is_masked(views):
    part = window(views[0], 79.0, 0.0, 6)
    assert part.data.shape == (13, 13)
    assert part.masked[:6].all() and part.masked[:, 7:].all() and not part.masked[6:, :7].any()


def test_patch_overview_counts_and_draws_all_sources(fit):
    figure = draw(patch_overview(fit))
    assert figure.get_suptitle().startswith("r00_c01_pr00_pc02: 1 sources and 1 of the halo, 2 bands")
    assert {t.get_text() for t in figure.legends[0].get_texts()} >= {"star", "galaxy", "start", "fit", "masked"}
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 2


@pytest.mark.parametrize("index", [0, 1])
def test_montage_names_its_source_and_bands(fit, index):
    figure = draw(source_montage(fit, index, half=8))
    assert fit.sources.ID[index] in figure.get_suptitle()
    assert ("HALO" in figure.get_suptitle()) == (index == 1)
    assert {"g", "r", "data", "model"} <= {t.get_text() for t in figure.axes[0].texts}


def test_region_pictures(views):
    figure = draw(data_model_residual(views))
    assert [t.get_text() for t in figure.axes[0].texts][:3] == ["data", "model", "residual / noise"]
    assert len(draw(colour_triptych(views[1], views[0], views[0])).axes) == 1


def test_stamps_growth_and_sheet():
    y, x = np.mgrid[-10:11, -10:11]
    stamp = np.exp(-(x**2 + y**2) / 8)
    stamp /= stamp.sum()
    assert enclosed_light(stamp, np.array([2 * np.sqrt(2 * np.log(2))]))[0] == pytest.approx(0.5, abs=0.01)
    dead = np.full_like(stamp, np.nan)
    assert len(draw(show_stamps([stamp, dead, 0 * stamp], ["a", "b", "c"], title="three")).axes[0].texts) == 3
    assert any("r50" in t.get_text() for t in draw(growth_curve({"g": stamp})).axes[0].texts)
    sheet = draw(epsf_sheet([CellStamp(0, 0, stamp, "9 stars"), CellStamp(1, 1, stamp, "2 stars")], "g"))
    assert [t.get_text() for t in sheet.axes[0].texts] == ["9 stars", "2 stars"]


def test_every_source_is_in_one_group(tile):
    groups = source_groups(tile.catalog)
    assert np.sum(list(groups.values()), axis=0).tolist() == [1] * len(tile.catalog)
    assert {name: int(rows.sum()) for name, rows in groups.items()} == {
        "star": 1, "galaxy": 1, "Gaia star added": 1, "unknown type": 1, "excluded: saturated": 1, "excluded: outside": 1}
    assert source_groups(tile.catalog.drop(columns=["TYPE", "_is_injected_gaia"]))["unknown type"].sum() == 4


@pytest.mark.parametrize("box", [None, Box(-10, 30, 40, 90), Box(200, 240, 200, 240)])
def test_white_overlay(tile, box):
    figure = draw(white_overlay(tile, downsample=2, box=box))
    assert len(figure.legends[0].get_texts()) == 6
    expected = Box.of_shape(SHAPE) if box is None else box
    np.testing.assert_allclose(figure.axes[0].get_xlim(), (expected.x0 - 0.5, expected.x1 - 0.5))
    np.testing.assert_allclose(figure.axes[1].get_ylim(), (expected.y0 - 0.5, expected.y1 - 0.5))


def test_bright_mask_overlay(tile):
    texts = [t.get_text() for t in draw(bright_mask_overlay(tile)).legends[0].get_texts()]
    assert texts[:2] == ["active source in the mask (1)", "excluded source in the mask (1)"]
    assert texts[2].startswith("masked (2.08 %")


@pytest.mark.parametrize("full_range", [False, True])
def test_zero_point_picture(full_range):
    stars = pd.DataFrame({"band": ["g", "g", "g", "r"], "gaiaxp_mag": [13.0, 14, 15, 14], "zp": [25.0, 25.1, 29.0, 20.0],
                          "zp_err": [0.01, np.nan, 0.01, 0.01], "is_kept": [True, True, False, True], "is_clipped": [False, False, True, False]})
    zero = SimpleNamespace(band="g", zp=25.05, zp_median=25.0, zp_scatter=0.01, error=lambda method: 0.02)
    settings = SimpleNamespace(plot_mag_lo=10, plot_mag_hi=20, plot_zp_offset=0.25, zp_err_method="standard_error")
    axes = draw(zp_vs_mag(zero, stars, settings, full_range)).axes[0]
    low, high = axes.get_ylim()
    assert (high > 29) == full_range and (full_range or (low, high) == (24.75, 25.25))
    labels = axes.get_legend_handles_labels()[1]
    assert {"kept (2)", "clipped (1)", "unreliable (0)"} <= set(labels)


def test_pictures_leave_no_pyplot_state(fit):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    draw(patch_overview(fit))
    assert plt.get_fignums() == before


def test_patch_overview_leaves_out_sources_beyond_the_region(fit):
    """They belong to the fit but not to the picture, where their marks would fall on other panels."""
    fit.sources.loc[1, "x_pix_patch"] = -12.0
    figure = draw(patch_overview(fit))
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 1
