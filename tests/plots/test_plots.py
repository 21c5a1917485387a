"Pictures: what each of them shows, and that they leave nothing behind."

import subprocess
import sys
import tracemalloc
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from tract7dt.config.schema import PatchRun
from tract7dt.core.geometry import Box
from tract7dt.plots.base import PALETTE, colour_image, mosaic, paint, residual_norm, sky_noise, sky_norm
from tract7dt.plots.calibration import is_faint, zp_vs_mag
from tract7dt.plots.epsf import CellStamp, epsf_picture, epsf_sheet, gaussian_picture, growth_curve, growth_of
from tract7dt.plots.field import (
    bright_mask_overlay,
    display_step,
    gaia_overlay,
    source_groups,
    white_after_crop,
    white_before_crop,
    white_overlay,
)
from tract7dt.plots.palette import COLOURS, DIFFERENCE, GREY, MARK_INDEX, MASKED, PALE, to_palette
from tract7dt.plots.patch import (
    BandImages,
    colour_triptych,
    data_model_residual,
    light_norm,
    montage_sheet,
    overview_sheet,
    paint_patch,
    patch_overview,
    residual_limit,
    source_montage,
    white_view,
)
from tract7dt.plots.sheet import (
    STROKES,
    Bar,
    Lines,
    Marks,
    Panel,
    Sheet,
    bar_of,
    legend_entry,
    plan_of,
    render,
)
from tract7dt.plots.stars import (
    background_diagnostics,
    psf_stars,
    star_backgrounds,
    star_residuals,
    star_stamps,
)

SHAPE = (60, 80)


def drawn(picture):
    "Render a picture the way a run does."
    (picture.save if isinstance(picture, Sheet) else lambda stream, dpi: picture.savefig(stream, dpi=dpi))(
        BytesIO(), 40
    )
    return picture


def is_masked(entries):
    "Where palette entries stand for masked pixels."
    return (entries >= MASKED.first) & (entries < MASKED.first + MASKED.count)


def points(panel, shape):
    "Positions of the marks of one shape on a panel."
    marks = [m for m in panel.marks if isinstance(m, Marks) and m.shape == shape]
    return [(float(x), float(y)) for m in marks for x, y in zip(m.x, m.y)]


@pytest.fixture
def views():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    model = 300 * np.exp(-((x - 30) ** 2 + (y - 20) ** 2) / 8) + 1.0
    masked = np.zeros(SHAPE, bool)
    masked[5:9, 5:9] = True
    return [
        BandImages(name, model + rng.normal(0, s, SHAPE), model, masked & (name == "g"), s)
        for name, s in (("g", 1.0), ("r", 2.0))
    ]


@pytest.fixture
def fit(views):
    sources = pd.DataFrame(
        {
            "ID": ["00001", "NA"],
            "x_pix_patch": [30.4, 70.0],
            "y_pix_patch": [20.0, 50.0],
            "stype_fit": ["star", "exp"],
            "_is_halo_source": [False, True],
        }
    )
    cuts = [
        SimpleNamespace(name=v.name, image=v.data, mask=v.masked.astype(np.uint8), sky_sigma=v.noise)
        for v in views
    ]
    patch = SimpleNamespace(
        tag="r00_c01_pr00_pc02", base=Box(110, 150, 210, 240), roi=Box(100, 180, 200, 260)
    )
    found = np.array([30.0, np.nan]), np.array([20.0, np.nan])
    return SimpleNamespace(
        payload=SimpleNamespace(patch=patch, bands=cuts),
        sources=sources,
        together=True,
        model=np.stack([v.model for v in views]),
        place=lambda band=None: found,
    )


@pytest.fixture
def tile():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (
        ["RA---TAN", "DEC--TAN"],
        [150, 2],
        [40, 30],
        [-1.4e-4, 1.4e-4],
    )
    white = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    white[3, 4] = np.nan
    catalog = pd.DataFrame(
        {
            "TYPE": ["STAR", " exp", "STAR", "blob", "DEV", "STAR", "EXP"],
            "x_pix_white": [5, 20, 30, 40, 50, np.nan, 300],
            "y_pix_white": [5, 20, 30, 40, 50, np.nan, 9],
            "excluded_any": [False] * 4 + [True] * 3,
            "excluded_saturation": [False] * 4 + [True, False, False],
            "excluded_crop": [False] * 5 + [True] * 2,
            "_is_injected_gaia": [False, False, True] + [False] * 4,
            "gaia_source_id": ["11", "", "12", "", "", "", ""],
            "affected_by_bright_mask": [True] + [False] * 3 + [True, False, False],
        }
    )
    mask = np.zeros(SHAPE, bool)
    mask[:10, :10] = True
    found = pd.DataFrame({"x": [5.0, 20.0, 60.0], "y": [5.0, 20.0, 30.0], "matched": [False, True, True]})
    return SimpleNamespace(
        white=white,
        wcs=wcs,
        shape=SHAPE,
        catalog=catalog,
        bright_mask=mask,
        bright_sources=found,
        gaia_box=Box(2, 70, 1, 55),
    )


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- one look for all ---


def test_masked_and_missing_pixels_have_one_colour():
    image = np.array([[np.nan, 1.0], [np.inf, 2.0]])
    colours = paint(image, sky_norm(1.0), np.array([[False, True], [False, False]]))
    np.testing.assert_allclose(colours[[0, 0, 1], [0, 1, 0]], [to_rgb(PALETTE.masked)] * 3, atol=1e-6)
    assert not np.allclose(colours[1, 1], to_rgb(PALETTE.masked))


def test_a_masked_pixel_can_still_be_read():
    """Under red glass: redder than the same pixel in the open, brighter where there is light."""
    entries = to_palette(
        np.array([[0.0, 20.0, 20.0, np.nan]]), sky_norm(1.0), np.array([[True, True, False, False]])
    )
    dark, light, open_sky, missing = COLOURS[entries[0]].astype(int)
    assert light.sum() > dark.sum() and light[0] > light[2] and open_sky[0] == open_sky[2]
    np.testing.assert_allclose(missing / 255, to_rgb(PALETTE.masked), atol=0.003)


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
            np.testing.assert_allclose(made.colours[y : y + 2, x : x + 3], panels[row][column], rtol=1e-6)
    assert made.corners[0, 0, 1] > made.corners[1, 0, 1]


def test_colour_image_is_a_picture():
    bands = np.random.default_rng(0).normal(size=(3, 9, 9)) * 100
    colours = colour_image(*bands, masked=np.eye(9, dtype=bool))
    assert colours.min() >= 0 and colours.max() <= 1
    np.testing.assert_allclose(colours[3, 3], to_rgb(PALETTE.masked), atol=1e-6)


# --- sheets ---


def test_every_colormap_and_mark_has_entries_of_its_own():
    ramps = [set(range(r.first, r.first + r.count)) for r in (GREY, MASKED, DIFFERENCE)] + [
        set(MARK_INDEX.values())
    ]
    assert sum(map(len, ramps)) == len(set.union(*ramps)) and max(set.union(*ramps)) < 256


@pytest.mark.parametrize("dpi", [40, 100, 300])
@pytest.mark.parametrize("shape", list(STROKES))
def test_a_mark_is_where_its_source_is(dpi, shape):
    """At any resolution, in the right panel, seen from the lower left."""
    x, y = 7.0, 31.0
    marked = Panel(
        np.zeros((40, 50), np.uint8),
        marks=(Marks(shape, "star", np.array([x, np.nan]), np.array([y, 3.0]), 3.0),),
    )
    sheet = Sheet(((Panel(np.zeros((40, 50), np.uint8)), marked),), "two panels")
    plan, image = plan_of(sheet, dpi), np.asarray(render(sheet, dpi))
    rows, columns = np.nonzero(image == MARK_INDEX["star"])
    unit = plan.magnify / plan.thin
    middle = (columns.min() + columns.max()) / 2 - plan.lefts[1], (rows.min() + rows.max()) / 2 - plan.tops[0]
    np.testing.assert_allclose(
        middle, [(x + 0.5) * unit, (40 - 0.5 - y) * unit], atol=1.6 + 0.3 * plan.px(3.0)
    )


def test_marks_end_at_the_edge_of_their_panel():
    edge = Panel(
        np.zeros((20, 20), np.uint8),
        marks=(Marks("circle", "star", np.array([19.0]), np.array([10.0]), 9.0),),
    )
    sheet = Sheet(((edge, Panel(np.zeros((20, 20), np.uint8))),))
    plan, image = plan_of(sheet, 100), np.asarray(render(sheet, 100))
    assert np.nonzero(image == MARK_INDEX["star"])[1].max() < plan.lefts[0] + plan.panel[1]


def test_a_sheet_has_room_for_all_its_words():
    """A long title widens the sheet, the legend breaks into lines; a colour bar leaves out ticks that would
    overlap.
    """
    panel = Panel(np.zeros((20, 20), np.uint8), bar=Bar(GREY, ((0.5, "a"), (0.51, "b"), (1.0, "c"))))
    sheet = Sheet(
        ((panel,),),
        "a title much longer than the picture is wide",
        legend=tuple(legend_entry("circle", "star", f"number {k}") for k in range(9)),
    )
    plan = plan_of(sheet, 100)
    assert plan.size[0] > plan.panel[1] + 100 and len(plan.legend_lines) > 1
    assert sorted(sum(plan.legend_lines, ())) == list(range(9))
    assert [text for _, text in bar_of(Normalize(-1, 1), (-2, 0, 1)).ticks] == ["0", "1"]


def test_a_sheet_is_a_figure_too():
    sheet = Sheet(((Panel(np.full((20, 20), MARK_INDEX["star"], np.uint8)), None),))
    figure = sheet.figure(60)
    assert isinstance(figure, Figure) and len(figure.axes[0].images) == 1
    np.testing.assert_allclose(
        figure.axes[0].images[0].get_array()[10, 10] / 255, to_rgb(PALETTE.star), atol=0.003
    )


def test_equal_sheets_are_equal_bytes():
    streams = [BytesIO(), BytesIO()]
    for stream in streams:
        Sheet(((Panel(np.arange(400, dtype=np.uint8).reshape(20, 20) % 88),),), "twice").save(stream, 100)
    assert streams[0].getvalue() == streams[1].getvalue()


# --- patches ---


def test_residual_is_in_units_of_the_noise(views):
    assert views[0].chi == pytest.approx(1, abs=0.05)
    noisy = BandImages("g", views[0].data, views[0].model, views[0].masked, np.full(SHAPE, 2.0))
    assert noisy.chi == pytest.approx(0.5, abs=0.03)


def test_white_view_ignores_masked_pixels_of_a_band(views):
    white = white_view(tuple(views))
    assert not white.masked.any()
    np.testing.assert_allclose(white.data[6, 6], views[1].data[6, 6] / 2, rtol=1e-12)


def test_pixels_masked_in_all_bands_show_what_is_there(views):
    both = white_view(
        tuple(BandImages(v.name, v.data, v.model, np.ones(SHAPE, bool), v.noise) for v in views)
    )
    assert both.masked.all() and np.isnan(both.chi)
    np.testing.assert_allclose(both.data, (views[0].data + views[1].data / 4) / np.sqrt(1.25), rtol=1e-12)


def test_a_missing_pixel_of_one_band_does_not_spoil_the_white_view(views):
    views[0].data[6, 6] = np.nan
    assert np.isfinite(white_view(tuple(views)).data).all()


def test_percentiles_of_the_configuration_set_the_stretch(views):
    usual = light_norm(views[0], 1.0)
    assert light_norm(views[0], 1.0, PatchRun(cutout_data_p_lo=30, cutout_model_p_lo=30)).vmin > usual.vmin
    assert light_norm(views[0], 1.0, PatchRun(cutout_data_p_hi=60, cutout_model_p_hi=60)).vmax < usual.vmax
    assert light_norm(
        views[0], 1.0, PatchRun(cutout_data_p_hi=60, cutout_model_p_hi=99)
    ).vmax == pytest.approx(usual.vmax, rel=0.05)
    assert (
        residual_limit(views, PatchRun(cutout_resid_p_abs=90))
        < residual_limit(views)
        < residual_limit(views, PatchRun(cutout_resid_p_abs=100))
    )


def test_core_and_noise_are_both_seen(views):
    """The noise spreads over grey levels, and so does the core, however bright."""
    bright = BandImages(
        "g", views[0].data + 9 * (views[0].model - 1), 10 * views[0].model - 9, views[0].masked, 1.0
    )
    norm = light_norm(bright, 1.0)
    assert norm(1.0) - norm(-1.0) > 0.1 and norm(1500) - norm(300) > 0.1


def test_patch_overview_counts_and_draws_all_sources(fit):
    sheet = drawn(overview_sheet(paint_patch(fit)))
    assert sheet.title.startswith("r00_c01_pr00_pc02: 1 sources and 1 of the halo, 2 bands")
    assert {text for _, text in sheet.legend} >= {"star", "galaxy", "start", "fit", "masked pixels"}
    data, model, residual = sheet.panels
    assert points(data, "circle")[0] == (30.0, 20.0) and len(points(data, "circle")) == 2
    assert points(model, "cross") == [(30.4, 20.0), (30.0, 20.0)]
    assert not points(residual, "cross") and all(
        any(isinstance(m, Lines) for m in p.marks) for p in sheet.panels
    )
    assert data.bar.ticks[-1][0] == pytest.approx(1) and isinstance(patch_overview(fit), Figure)


def test_patch_overview_leaves_out_sources_beyond_the_region(fit):
    """They belong to the fit but not to the picture, where their marks would fall on other panels."""
    fit.sources.loc[1, "x_pix_patch"] = -12.0
    assert len(points(overview_sheet(paint_patch(fit)).panels[0], "circle")) == 1


@pytest.mark.parametrize("index", [0, 1])
def test_montage_names_its_source_and_bands(fit, index):
    sheet = drawn(montage_sheet(paint_patch(fit), index, half=8))
    assert sheet.title.startswith(fit.sources.ID[index]) and ("HALO" in sheet.title) == (index == 1)
    assert [panel.title for panel in sheet.rows[0]] == ["g", "r"] and sheet.row_titles[:2] == (
        "data",
        "model",
    )
    assert {panel.pixels.shape for panel in sheet.panels} == {(17, 17)} and isinstance(
        source_montage(fit, index, 8), Figure
    )


def test_montage_is_centred_on_the_source_and_pale_beyond_the_region(fit):
    sheet = montage_sheet(paint_patch(fit), 1, half=15)
    data = sheet.rows[0][0].pixels
    assert (data[25:] == PALE).all() and (data[:, 25:] == PALE).all() and not (data[:25, :25] == PALE).all()
    assert points(sheet.rows[0][0], "hair")[0] == (15.0, 15.0)


def test_montage_shows_masked_pixels_and_neighbours(fit):
    fit.sources.loc[1, ["x_pix_patch", "y_pix_patch"]] = [36.0, 25.0]
    found = np.array([30.0, 36.4]), np.array([20.0, 25.0])
    fit.place = lambda band=None: found
    sheet = montage_sheet(paint_patch(fit), 0, half=25)
    first, second = sheet.rows[0]
    assert is_masked(first.pixels).sum() == 16 and not is_masked(second.pixels).any()
    assert points(first, "diamond") == [(31.0, 30.0), (31.4, 30.0)] and not points(
        sheet.rows[2][0], "diamond"
    )


def test_the_sky_is_in_the_model_once(fit):
    """A perfect model on a high sky leaves a residual panel of the grey of zero."""
    for cut, model in zip(fit.payload.bands, fit.model):
        cut.image, cut.mask = model.copy(), 0 * cut.mask
    paint = paint_patch(fit)
    assert {int(v) for view in (*paint.views, paint.white) for v in np.unique(view.residual)} == {
        int(GREY.index(0.5))
    }
    for view in paint.views:
        np.testing.assert_array_equal(view.data, view.model)


def test_each_band_is_shown_with_its_own_model_and_places(fit, views):
    """Bands in an order that is not alphabetical, each with a model and positions of its own."""
    names = [view.name for view in views]
    fit.model = np.stack([views[0].model, np.ones(SHAPE)])
    fit.together = False
    fit.place = lambda band=None: (
        np.array([30.0 + (names.index(band) if band else 0.5), np.nan]),
        np.array([20.0, np.nan]),
    )
    fit.payload.bands, fit.model = fit.payload.bands[::-1], fit.model[::-1]
    sheet = montage_sheet(paint_patch(fit), 0, half=10)
    models = {panel.title: sheet.rows[1][k].pixels for k, panel in enumerate(sheet.rows[0])}
    assert np.ptp(models["g"].astype(int)) > 30 and np.ptp(models["r"].astype(int)) == 0
    places = {panel.title: points(panel, "hair")[1] for panel in sheet.rows[0]}
    assert places == {"g": (10.0, 10.0), "r": (11.0, 10.0)}


def test_a_band_without_a_good_pixel_is_drawn(fit):
    fit.payload.bands[0].mask[:] = 1
    fit.payload.bands[0].image[:] = 0
    sheet = drawn(montage_sheet(paint_patch(fit), 0, half=10))
    assert is_masked(sheet.rows[0][0].pixels).all()


def test_region_pictures(views):
    figure = drawn(data_model_residual(views))
    assert [t.get_text() for t in figure.axes[0].texts][:3] == ["data", "model", "residual / noise"]
    assert len(drawn(colour_triptych(views[1], views[0], views[0])).axes) == 1


# --- ePSFs and their stars ---


@pytest.fixture
def stamp():
    y, x = np.mgrid[-10:11, -10:11]
    made = np.exp(-(x**2 + y**2) / 8)
    return made / made.sum()


def test_stamps_growth_and_sheet(stamp):
    radii, light = growth_of(stamp)
    assert np.interp(2 * np.sqrt(2 * np.log(2)), radii, light) == pytest.approx(0.5, abs=0.01)
    marks = drawn(growth_curve({"g": stamp})).panels[0].marks[-1]
    assert [text[:5] for text in marks.texts] == ["r50 =", "r80 ="]
    assert float(marks.texts[0].split()[2]) == pytest.approx(2 * np.sqrt(2 * np.log(2)), abs=0.05)
    sheet = drawn(epsf_sheet([CellStamp(0, 0, stamp, "9 stars"), CellStamp(1, 1, stamp, "2 stars")], "g"))
    assert [t.get_text() for t in sheet.axes[0].texts] == ["9 stars", "2 stars"]
    assert (
        len(
            drawn(epsf_sheet([CellStamp(k // 4, k % 4, stamp, "") for k in range(16)]))
            .axes[2]
            .get_legend()
            .get_texts()
        )
        == 2
    )


def test_oversampled_stamps_have_radii_in_image_pixels(stamp):
    assert growth_of(stamp, 2)[0][-1] == growth_of(stamp)[0][-1] / 2


def test_epsf_pictures_compare(stamp):
    same = drawn(epsf_picture(stamp, stamp, "g r00_c00", ("a", "b", "c"))).panels
    assert np.ptp(same[2].pixels) == 0 and [panel.foot for panel in same] == ["a", "b", "c"]
    wide = np.roll(stamp, 1, axis=0)
    panels = drawn(gaussian_picture(stamp, 7 * wide)).panels
    assert panels[2].foot.startswith("worst") and np.ptp(panels[2].pixels.astype(int)) == DIFFERENCE.count - 1


@pytest.fixture
def stars():
    return pd.DataFrame(
        {
            "x": [110.0, 120, 130, 140, 150],
            "y": [210.0, 220, 230, 240, 250],
            "flux": [900.0, 800, 700, 600, 500],
            "snr": [90.0, 80, 70, 60, 50],
            "origin": ["sep", "gaia", "both", "both", "sep"],
            "id": [0, 1, 2, 3, -1],
            "accepted": [True, True, True, False, False],
            "reason": ["", "", "", "chi2", "shape"],
        }
    )


def test_stars_of_a_cell_are_marked_by_origin_and_the_others_explained(stars):
    image, masked = np.zeros((70, 80)), np.zeros((70, 80), bool)
    masked[5:7, 5:7] = True
    sheet = drawn(psf_stars(image, masked, stars, Box(100, 180, 200, 270), "a cell"))
    (panel,) = sheet.panels
    assert (
        points(panel, "circle") == [(10, 10)]
        and points(panel, "plus") == [(20, 20)]
        and points(panel, "cross") == [(30, 30), (40, 40)]
    )
    assert points(panel, "diamond") == [(40, 40), (50, 50)] and is_masked(panel.pixels).sum() == 4
    texts = [text for _, text in sheet.legend]
    assert texts[:4] == ["detection (1)", "Gaia (1)", "both (2)", "not used: dropped by the fit 1, shape 1"]


def test_a_thinned_cell_has_its_stars_where_they_are(stars):
    (panel,) = drawn(
        psf_stars(np.zeros((18, 20)), np.zeros((18, 20), bool), stars, Box(100, 180, 200, 270), step=4)
    ).panels
    assert points(panel, "circle") == [(2.5, 2.5)] and points(panel, "diamond") == [(10, 10), (12.5, 12.5)]


def test_a_cell_without_stars_is_drawn(stars):
    assert (
        drawn(psf_stars(np.zeros((9, 9)), np.ones((9, 9), bool), stars[:0], Box(0, 9, 0, 9))).legend[3][1]
        == "not used: none"
    )


def test_background_picture(stars):
    hidden = np.eye(30, dtype=bool)
    sheet = drawn(background_diagnostics(np.full((30, 30), 7.0), np.full((30, 30), 7.0), hidden, "b"))
    assert (
        len(sheet.panels) == 3
        and is_masked(sheet.panels[0].pixels).sum() == 30
        and all(panel.bar for panel in sheet.panels)
    )
    assert not any(
        panel.bar for panel in background_diagnostics(np.eye(30), np.eye(30), hidden, bars=False).panels
    )


@pytest.fixture
def star_views(stars, stamp):
    rng, used = np.random.default_rng(4), stars[:3]
    model = used.flux.to_numpy()[:, None, None] * stamp
    corrected = model + rng.normal(0, 2.0, model.shape)
    corrected[0, 3, 3] = np.nan
    y, x = np.mgrid[-10:11, -10:11]
    annulus = np.broadcast_to((np.hypot(x, y) > 6) & (np.hypot(x, y) < 9), model.shape)
    return SimpleNamespace(
        table=used,
        raw=corrected + 5,
        corrected=corrected,
        model=model,
        residual=corrected - model,
        noise=np.full(model.shape, 2.0),
        annulus=annulus,
        sky=np.full(3, 5.0),
        annulus_level=np.full(3, 5.1),
        annulus_count=annulus.sum(axis=(1, 2)),
    )


def test_stamps_of_stars_have_numbers_origins_and_frames(star_views):
    sheet = drawn(star_stamps(star_views.corrected, star_views.table, np.full(3, 2.0), "used"))
    assert [panel.title for panel in sheet.panels] == ["0  sep", "1  gaia", "2  both"]
    assert [panel.frame for panel in sheet.panels] == ["other", "injected", "star"]
    assert (
        sheet.panels[0].pixels[3, 3] == MARK_INDEX["masked"]
        and sheet.panels[1].pixels[3, 3] != MARK_INDEX["masked"]
    )


def test_local_sky_has_three_panels_a_star(star_views):
    sheet = drawn(star_backgrounds(star_views, "sky"))
    assert len(sheet.panels) == 9 and [panel.title for panel in sheet.rows[0]] == [
        "before",
        "annulus",
        "after",
    ]
    annulus = sheet.rows[1][1]
    assert (annulus.pixels != PALE).sum() == star_views.annulus_count[
        1
    ] and annulus.foot == f"{star_views.annulus_count[1]} px, 5.1"
    assert all(panel.bar for panel in sheet.rows[-1]) and not any(panel.bar for panel in sheet.rows[0])
    before, _, after = (panel.pixels[15:].astype(float).mean() for panel in sheet.rows[1])
    assert before > after + 5
    assert not any(panel.bar for panel in star_backgrounds(star_views, bars=False).panels)


def test_residuals_of_stars(star_views):
    data, model, residual, histogram = drawn(star_residuals(star_views, "g")).panels
    bias, rms = (float(word) for word in histogram.title.replace(",", "").split()[1::2])
    assert abs(bias) < 0.1 and rms == pytest.approx(1, abs=0.05)
    assert (
        residual.bar.ticks[0][1].startswith("-") and sum(isinstance(m, Lines) for m in histogram.marks) == 2
    )
    star_views.noise[:] = 4.0
    assert float(star_residuals(star_views).panels[3].title.split()[-1]) == pytest.approx(0.5, abs=0.03)


# --- the field ---


def test_every_source_is_in_one_group(tile):
    groups = source_groups(tile.catalog)
    assert np.sum(list(groups.values()), axis=0).tolist() == [1] * len(tile.catalog)
    assert {name: int(rows.sum()) for name, rows in groups.items()} == {
        "star": 1,
        "galaxy": 1,
        "Gaia star added": 1,
        "unknown type": 1,
        "excluded: saturated": 1,
        "excluded: outside": 1,
        "excluded: no coordinates": 1,
    }
    assert source_groups(tile.catalog.drop(columns=["TYPE", "_is_injected_gaia"]))["unknown type"].sum() == 4


@pytest.mark.parametrize("box", [None, Box(-10, 30, 40, 90), Box(200, 240, 200, 240)])
def test_white_overlay(tile, box):
    figure = drawn(white_overlay(tile, downsample=2, box=box, fallback="sersic"))
    assert len(legend(figure)) == 7 and "unknown type, fitted as SERSIC (1)" in legend(figure)
    expected = Box.of_shape(SHAPE) if box is None else box
    np.testing.assert_allclose(figure.axes[0].get_xlim(), (expected.x0 - 0.5, expected.x1 - 0.5))
    np.testing.assert_allclose(figure.axes[1].get_ylim(), (expected.y0 - 0.5, expected.y1 - 0.5))


def test_crop_pictures(tile):
    before = drawn(white_before_crop(np.full((40, 50), 1.0), 2, (80, 100), Box(10, 90, 5, 75)))
    (rectangle,) = before.axes[0].patches
    assert (*rectangle.get_xy(), rectangle.get_width(), rectangle.get_height()) == (9.5, 4.5, 80, 70)
    assert before.axes[0].get_xlim() == (-0.5, 99.5) and before.axes[0].get_title().startswith(
        "before the crop: 100 x 80 pixels, 80 x 70"
    )
    after = drawn(white_after_crop(tile, 2))
    assert after.axes[0].images[0].get_array().shape[:2] == (30, 40)


def test_gaia_overlay_counts_what_gaia_did(tile):
    figure = drawn(gaia_overlay(tile))
    assert {
        "matched with Gaia (1)",
        "Gaia star added (1)",
        "excluded: saturated (1)",
        "box of the selection",
    } <= set(legend(figure))
    (box,) = figure.axes[0].patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (1.5, 0.5, 68, 54)
    squares = next(
        line for line in figure.axes[0].lines if line.get_marker() == "s" and "matched" in line.get_label()
    )
    assert squares.get_xydata().tolist() == [[5, 5]]


def test_bright_mask_overlay(tile):
    figure = drawn(bright_mask_overlay(tile))
    assert legend(figure) == [
        "detection in the catalog (2)",
        "not in it, masked (1)",
        "active source masked (1)",
        "excluded source masked (1)",
        "mask (2.08 % of pixels)",
    ]
    crosses = next(line for line in figure.axes[0].lines if line.get_marker() == "x")
    assert crosses.get_xydata().tolist() == [[5, 5]]
    tile.bright_sources = None
    assert len(legend(drawn(bright_mask_overlay(tile)))) == 3


def test_a_large_field_needs_little_memory(tile):
    """However large the frame: an image of 6000 x 6000 pixels with four channels of floats
    would be 576 MB.
    """
    side = 6000
    tile.white, tile.shape, tile.bright_mask = (
        np.zeros((side, side), np.float32),
        (side, side),
        np.zeros((side, side), bool),
    )
    tracemalloc.start()
    drawn(bright_mask_overlay(tile, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 450e6 and display_step(Box.of_shape(tile.shape)) == 3


# --- zero points ---


@pytest.fixture
def zero_point():
    stars = pd.DataFrame(
        {
            "band": ["g", "g", "g", "r"],
            "gaiaxp_mag": [13.0, 14, 15, 14],
            "zp": [25.0, 25.1, 29.0, 20.0],
            "zp_err": [0.005, 0.05, 0.01, 0.01],
            "is_kept": [True, True, False, True],
            "is_clipped": [False, False, True, False],
        }
    )
    zero = SimpleNamespace(
        band="g", zp=25.05, zp_median=25.0, zp_scatter=0.01, zp_err_snr_used=100.0, error=lambda method: 0.02
    )
    settings = SimpleNamespace(
        plot_mag_lo=10, plot_mag_hi=20, plot_zp_offset=0.25, zp_err_method="standard_error"
    )
    return zero, stars, settings


@pytest.mark.parametrize("full_range", [False, True])
def test_zero_point_picture(zero_point, full_range):
    axes = drawn(zp_vs_mag(*zero_point, full_range)).axes[0]
    low, high = axes.get_ylim()
    assert (
        (high > 29) == full_range
        and (full_range or (low, high) == (24.75, 25.25))
        and axes.get_xlim() == (10, 20)
    )
    labels = axes.get_legend_handles_labels()[1]
    assert {"kept (2)", "clipped (1)", "unreliable (0)"} <= set(labels)
    assert [text.get_text() for text in axes.texts] == ([] if full_range else ["1 stars beyond the axes"])


def test_stars_without_a_part_in_the_error_are_grey(zero_point):
    zero, stars, settings = zero_point
    settings.zp_err_method = "bright_std"
    assert is_faint(stars, zero, settings).tolist() == [False, True, False, False]
    labels = drawn(zp_vs_mag(zero, stars, settings)).axes[0].get_legend_handles_labels()[1]
    assert {"kept (1)", "kept, too faint for the error (1)"} <= set(labels)
    zero.zp_err_snr_used = np.nan
    assert not is_faint(stars, zero, settings).any()


# --- no traces ---


def test_pictures_need_no_window_system():
    """Nothing that draws imports pyplot, whose backend depends on where it runs."""
    code = (
        "import sys; import tract7dt.plots.patch, tract7dt.plots.stars, tract7dt.plots.field, "
        "tract7dt.plots.calibration; "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
