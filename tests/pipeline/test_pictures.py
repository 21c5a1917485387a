"""The pictures of each stage: which files the configuration asks for, that they are whole, and that a failing
one harms nothing.
"""

import hashlib
import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tract7dt.epsf.build import build_epsf, write_epsf
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.geometry import build_patches
from tract7dt.patches.payload import build_patch_inputs
from tract7dt.patches.problem import load_psfs
from tract7dt.pipeline import pictures
from tract7dt.results.zero_points import ZeroPoints, solve_zero_points
from tract7dt.tile.bright_mask import mask_bright_sources
from tract7dt.tile.gaia import augment_gaia
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.layout import CELL_PICTURES, Layout

pytestmark = pytest.mark.xdist_group("pictures")

ROUTINE = set(CELL_PICTURES) - {"hybrid_psf_diagnostics", "gaussian_mixture_psf_diagnostics"}


def names(folder) -> list[str]:
    """PNG files below a folder; checks on the way that each is a whole picture and that nothing temporary is
    left.
    """
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    paths = sorted(folder.rglob("*.png"))
    for path in paths:
        with Image.open(path) as image:
            image.load()
    return [path.name for path in paths]


def width(path) -> int:
    with Image.open(path) as image:
        return image.size[0]


@pytest.fixture(scope="module")
def made(middle_config):
    """Tile, ePSFs and the fit of one patch of the middle of the sample tile."""
    cfg = middle_config(**{"epsf.max_workers": 1})
    layout, plain = Layout.of(cfg.outputs), load_inputs(cfg)
    tile = mask_bright_sources(augment_gaia(plain, cfg), cfg)
    grid = build_epsf(tile, cfg)
    write_epsf(grid, layout)
    payload = next(iter(build_patch_inputs(tile, build_patches(tile, cfg)[:1], cfg)))
    return cfg, plain, tile, grid, fit_patch(payload, load_psfs(payload, layout, cfg), cfg)


@pytest.fixture
def place(middle_config):
    """A configuration with all pictures, quick ones, and a layout of its own; takes dotted overrides."""
    all_on = {
        f"epsf.save_{name}": True
        for name in (
            "patch_background_diagnostics",
            "star_local_background_diagnostics",
            "growth_curve",
            "residual_diagnostics",
        )
    }
    all_on |= {"overlay.enabled": True, "patch_run.no_cutouts": False, "patch_run.no_patch_overview": False}

    def of(**changes):
        cfg = middle_config(**{"plotting.dpi": 30, "epsf.max_workers": 1} | all_on | changes)
        return cfg, Layout.of(cfg.outputs)

    return of


# --- load, Gaia, bright mask ---

ALL_WHITE = ["white_after_crop.png", "white_before_crop.png", "white_overlay.png", "white_overlay_zoom.png"]


@pytest.mark.parametrize(
    "changes, missing",
    [
        ({}, set()),
        ({"crop.plot_pre_crop": False}, {"white_before_crop.png"}),
        ({"crop.plot_post_crop": False}, {"white_after_crop.png"}),
        ({"crop.enabled": False}, {"white_before_crop.png", "white_after_crop.png"}),
        ({"overlay.zoom_enabled": False}, {"white_overlay_zoom.png"}),
        ({"overlay.enabled": False}, {"white_overlay.png", "white_overlay_zoom.png"}),
    ],
)
def test_the_load_stage_draws_what_is_asked_for(made, place, changes, missing):
    """Pictures of an earlier run that are not asked for now are gone."""
    cfg, layout = place(**changes)
    layout.cropped_images_dir.mkdir(parents=True)
    layout.white_before_crop.write_text("of another run")
    pictures.draw_load(made[1], cfg, layout)
    assert names(layout.work_dir) == sorted(set(ALL_WHITE) - missing)


def test_the_rim_is_read_for_the_picture_before_the_crop(middle_config):
    """Pixel by pixel what the stack without a crop has, for a stride that does not divide the margin."""
    free = {"patch_run.sky": "free"}
    cropped, whole = (
        load_inputs(middle_config(**free)),
        load_inputs(middle_config(**free | {"crop.enabled": False})),
    )
    np.testing.assert_allclose(
        pictures.thinned_white(cropped, 7), whole.white[::7, ::7], rtol=1e-5, atol=1e-5
    )


def test_rim_boxes_cover_the_rim_once(made, monkeypatch):
    monkeypatch.setattr(pictures, "RIM_PIXELS", 900)
    count = np.zeros((70, 90), int)
    for box in pictures.rim_boxes((70, 90), pictures.Box(10, 80, 5, 60)):
        count[box.slices] += 1
        assert box.height * box.width <= 900
    assert count[5:60, 10:80].sum() == 0 and count.sum() == (count > 0).sum() == 70 * 90 - 55 * 70
    assert pictures.rim_boxes((70, 90), pictures.Box(0, 90, 0, 70)) == []


def test_strides_of_the_crop_pictures_act(made, place):
    seen = {}
    for stride in (1, 4):
        cfg, layout = place(**{"crop.display_downsample": stride, "plotting.dpi": 100})
        pictures.draw_load(made[1], cfg, layout)
        seen[stride] = layout.white_before_crop.read_bytes()
    assert seen[1] != seen[4]


def test_resolution_is_that_of_the_configuration(made, place):
    sizes = []
    for dpi in (30, 60):
        cfg, layout = place(**{"plotting.dpi": dpi})
        pictures.draw_load(made[1], cfg, layout)
        pictures.draw_patch(made[4], cfg, layout)
        sizes.append(
            [width(path) for path in (layout.white_overlay, layout.patch_overview(made[4].payload.patch.tag))]
        )
    assert sizes[1][0] == 2 * sizes[0][0] and sizes[1][1] > 1.5 * sizes[0][1]


def test_a_zoom_beyond_the_frame_is_one_warning(made, place, caplog):
    cfg, layout = place(**{"overlay.zoom_box": [4000, 5000, 4000, 5000]})
    with caplog.at_level(logging.WARNING):
        pictures.draw_load(made[1], cfg, layout)
    assert "white_overlay_zoom.png" not in names(layout.work_dir)
    assert [r.message for r in caplog.records] == [
        "overlay.zoom_box: [4000, 5000, 4000, 5000] lies outside the frame of 376 x 352 pixels; no "
        "zoom is drawn"
    ]


def test_the_offsets_of_the_catalog_are_drawn_where_they_were_measured(made, place):
    cfg, layout = place()
    pictures.draw_offsets(made[1], cfg, layout)
    assert names(layout.work_dir) == ["catalog_offsets.png"]
    pictures.draw_offsets(replace(made[1], registration=None), cfg, layout)
    assert names(layout.work_dir) == []


def test_gaia_and_bright_mask_are_drawn_where_they_are(made, place):
    cfg, layout = place()
    pictures.draw_gaia(made[2], cfg, layout)
    pictures.draw_bright_mask(made[2], cfg, layout)
    assert names(layout.work_dir) == ["gaia_augmentation_overlay.png", "white_bright_mask_overlay.png"]
    pictures.draw_gaia(made[1], cfg, layout)
    pictures.draw_bright_mask(made[1], cfg, layout)
    assert names(layout.work_dir) == []


@pytest.mark.parametrize("broken", ["white_overlay", "white_before_crop"])
def test_a_picture_that_cannot_be_drawn_is_one_warning(made, place, monkeypatch, caplog, broken):
    """The others are drawn, and the file is not there at all."""
    cfg, layout = place()
    monkeypatch.setattr(pictures, broken, lambda *values, **options: 1 / 0)
    with caplog.at_level(logging.WARNING):
        pictures.draw_load(made[1], cfg, layout)
    expected = (
        {"white_overlay.png", "white_overlay_zoom.png"}
        if broken == "white_overlay"
        else {"white_before_crop.png"}
    )
    assert set(names(layout.work_dir)) == set(ALL_WHITE) - expected
    assert len(caplog.records) == len(expected) and "ZeroDivisionError" in caplog.text


def test_an_interruption_is_not_swallowed(made, place, monkeypatch):
    def interrupted(*values, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "white_overlay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pictures.draw_load(made[1], *place())


# --- ePSFs ---


def one_band(grid, band="m650"):
    return replace(grid, bands={band: grid.bands[band]})


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({}, set()),
        ({"epsf.save_growth_curve": False}, {"epsf_growth_curve"}),
        ({"epsf.save_residual_diagnostics": False}, {"epsf_residual_diagnostics"}),
        ({"epsf.save_patch_background_diagnostics": False}, {"background_diagnostics"}),
        ({"epsf.background_subtract_patch": False}, {"background_diagnostics", "psfstars_bgsub"}),
        ({"epsf.save_star_local_background_diagnostics": False}, {"star_local_background_diagnostics"}),
        ({"epsf.star_local_bkg_subtract": False}, {"star_local_background_diagnostics"}),
        ({"patch_run.psf_model": "hybrid"}, {"hybrid_psf_diagnostics"}),
        (
            {"patch_run.psf_model": "gaussian_mixture_from_stamp", "patch_run.gaussian_mixture_n": 2},
            {"gaussian_mixture_psf_diagnostics"},
        ),
    ],
)
def test_the_epsf_stage_draws_what_is_asked_for(made, place, changes, difference):
    cfg, layout = place(**changes)
    pictures.draw_epsf(one_band(made[3]), made[2], cfg, layout)
    assert set(names(layout.epsf_dir)) == {f"{name}.png" for name in ROUTINE ^ difference} | {
        "epsf_sheet.png",
        "registration.png",
    }


def test_numbers_of_stars_are_limited_by_the_configuration(made, place, monkeypatch):
    cfg, layout = place(**{"epsf.save_star_montage_max": 3, "epsf.residual_diag_max_stars": 5})
    counts = {}
    for name in ("star_stamps", "star_residuals", "star_backgrounds"):
        inner = getattr(pictures, name)

        def spy(*values, inner=inner, name=name):
            counts.setdefault(name, []).append(
                len(values[0]) if name == "star_stamps" else len(values[0].table)
            )
            return inner(*values)

        monkeypatch.setattr(pictures, name, spy)
    pictures.draw_epsf(one_band(made[3]), made[2], cfg, layout)
    assert counts == {"star_stamps": [3, 3], "star_residuals": [5], "star_backgrounds": [3]}


def test_pictures_of_an_earlier_run_do_not_stay(made, place):
    cfg, layout = place(**{"epsf.save_growth_curve": False})
    stale = layout.cell_picture("m650", "r00_c00", "epsf_growth_curve")
    stale.parent.mkdir(parents=True)
    stale.write_text("of another run")
    pictures.draw_epsf(one_band(made[3]), made[2], cfg, layout)
    assert not stale.exists()


def test_pictures_are_the_same_bytes_for_any_number_of_workers(made, place):
    hashes = []
    for workers in (1, 2):
        cfg, layout = place()
        pictures.draw_epsf(made[3], made[2], cfg, layout, workers)
        hashes.append(
            {
                str(p.relative_to(layout.epsf_dir)): hashlib.sha256(p.read_bytes()).hexdigest()
                for p in layout.epsf_dir.rglob("*.png")
            }
        )
    assert hashes[0] == hashes[1] and len(hashes[0]) == 3 * (len(ROUTINE) + 1) + 1  # and the arrows


def test_a_band_whose_pixels_cannot_be_read_again_costs_its_pictures_only(made, place, monkeypatch, caplog):
    cfg, layout = place()

    def lost(*values):
        raise OSError("the disk is gone")

    monkeypatch.setattr(pictures, "view_band", lost)
    with caplog.at_level(logging.WARNING):
        pictures.draw_epsf(one_band(made[3]), made[2], cfg, layout)
    assert (
        names(layout.epsf_dir) == ["epsf_sheet.png", "registration.png"]
        and len(caplog.records) == 1
        and "the disk is gone" in caplog.text
    )


# --- patches ---


def test_every_source_that_can_be_seen_has_a_montage(made, place):
    """Halo sources too, under names of their own; sources whose middle is beyond the region have none."""
    cfg, layout = place()
    fit = made[4]
    assert pictures.draw_patch(fit, cfg, layout) == ""
    tag, table = fit.payload.patch.tag, fit.sources
    inside = (
        fit.payload.patch.roi.shift(-fit.payload.patch.roi.x0, -fit.payload.patch.roi.y0)
        .grow(1)
        .contains(*fit.place())
    )
    expected = {
        layout.montage(tag, row.ID, row._asdict()["halo"]).name
        for row in table[inside].rename(columns={"_is_halo_source": "halo"}).itertuples()
    }
    found = {path.name for path in layout.cutouts_dir(tag).glob("*.png")}
    assert found <= expected and len(expected) - len(found) <= 3 and layout.patch_overview(tag).exists()
    assert any("halo" in name for name in found) and any("halo" not in name for name in found)


@pytest.mark.parametrize(
    "changes, overview, montages",
    [
        ({"patch_run.no_cutouts": True}, True, 0),
        ({"patch_run.no_patch_overview": True, "patch_run.cutout_max_sources": 2}, False, 2),
        ({"patch_run.no_patch_overview": True, "patch_run.no_cutouts": True}, False, 0),
        ({"patch_run.cutout_start": 3, "patch_run.cutout_max_sources": 1}, True, 1),
        ({"patch_run.cutout_start": 9999}, True, 0),
    ],
)
def test_the_fit_stage_draws_what_is_asked_for(made, place, changes, overview, montages):
    cfg, layout = place(**changes)
    tag = made[4].payload.patch.tag
    layout.cutouts_dir(tag).mkdir(parents=True)
    (layout.cutouts_dir(tag) / "src_old.png").write_text("of another run")
    pictures.draw_patch(made[4], cfg, layout)
    assert (
        layout.patch_overview(tag).exists() == overview
        and len(list(layout.cutouts_dir(tag).glob("*.png"))) == montages
    )


def test_the_window_of_a_montage_is_odd(made, place):
    cfg, layout = place(
        **{"patch_run.cutout_size": 40, "patch_run.cutout_max_sources": 1, "plotting.dpi": 20}
    )
    sheet = pictures.montage_sheet(pictures.paint_patch(made[4]), 0, cfg.patch_run.cutout_size // 2)
    assert sheet.panels[0].pixels.shape == (41, 41)


def test_a_failing_montage_does_not_stop_the_others(made, place, monkeypatch):
    """What went wrong comes back in words, for the log of the run; nothing is raised."""
    cfg, layout = place(**{"patch_run.cutout_max_sources": 3})
    inner, tag = pictures.montage_sheet, made[4].payload.patch.tag
    first = int(pictures.paint_patch(made[4]).shown[0])
    monkeypatch.setattr(
        pictures,
        "montage_sheet",
        lambda paint, index, half: inner(paint, index, half) if index != first else {}["lost"],
    )
    problem = pictures.draw_patch(made[4], cfg, layout)
    assert (
        "KeyError" in problem
        and len(list(layout.cutouts_dir(tag).glob("*.png"))) == 2
        and layout.patch_overview(tag).exists()
    )
    monkeypatch.setattr(pictures, "paint_patch", lambda *values: 1 / 0)
    assert "ZeroDivisionError" in pictures.draw_patch(made[4], cfg, layout)


def test_ids_become_safe_file_names(made, place):
    cfg, layout = place(**{"patch_run.cutout_max_sources": 1})
    fit = made[4]
    odd = replace(fit, sources=fit.sources.assign(ID="a/b c"))
    pictures.draw_patch(odd, cfg, layout)
    assert [
        path.name.removeprefix("src_").removeprefix("halo_")
        for path in layout.cutouts_dir(fit.payload.patch.tag).iterdir()
    ] == ["a_b_c.png"]


# --- zero points ---


def test_zero_points_have_three_pictures_a_band(place):
    import pandas as pd

    count = 30
    rng = np.random.default_rng(0)
    magnitude = rng.uniform(13, 17, count)
    gaia = pd.DataFrame({"source_id": [str(k) for k in range(count)], "mag_g": magnitude, "mag_r": magnitude})
    flux = 10 ** ((25 - magnitude) / 2.5)
    catalog = pd.DataFrame(
        {
            "ID": gaia.source_id,
            "gaia_source_id": gaia.source_id,
            "stype_fit": "star",
            "fit_is_reliable": True,
            "x_pix_white_fit": rng.uniform(0, 99, count),
            "y_pix_white_fit": rng.uniform(0, 99, count),
        }
    )
    for band in "gr":
        catalog = catalog.assign(
            **{
                f"FLUX_{band}_fit": flux * (1 + rng.normal(0, 0.01, count)),
                f"FLUXERR_{band}_fit": 0.01 * flux,
                f"fracflux_{band}_fit": 0.0,
            }
        )
    cfg, layout = place()
    pictures.draw_zero_points(solve_zero_points(catalog, gaia, ["g", "r"], cfg.zp), cfg, layout)
    assert names(layout.zp_dir) == [
        "zp_field__g.png",
        "zp_field__r.png",
        "zp_vs_mag__g.png",
        "zp_vs_mag__g_fullrange.png",
        "zp_vs_mag__r.png",
        "zp_vs_mag__r_fullrange.png",
    ]
    pictures.draw_zero_points(ZeroPoints({}, pd.DataFrame()), cfg, layout)
    assert names(layout.zp_dir) == []
