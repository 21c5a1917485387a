"""Loading: everything is checked first, no row is lost, every exclusion has its reason."""

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from small_inputs import Field, noise, rows_at

from tract7dt.core.errors import UserError
from tract7dt.core.geometry import Box, strips
from tract7dt.inputs.band import MaskBit
from tract7dt.tile.exclusion import near_pixels
from tract7dt.tile.load import load_inputs
from tract7dt.tile.stack import stack_bands, stack_strip
from tract7dt.tile.tile import write_wcs
from tract7dt.workdir.layout import Layout


@pytest.fixture
def field(tmp_path):
    return Field(tmp_path)


class TestWhite:
    """The stack of all bands."""

    def test_nan_in_one_band(self, field):
        image = noise()
        image[30, 40] = np.nan
        field.image("m400", image)
        tile = load_inputs(field.cfg(patch_run=dict(sky="free")))
        assert tile.white[30, 40] == pytest.approx(fits.getdata(field.folder / "m425.fits")[30, 40])
        assert np.isfinite(tile.white).all()

    def test_nan_in_all_bands(self, field):
        for i, name in enumerate(field.bands):
            image = noise(i)
            image[3, 4] = np.nan
            field.image(name, image)
        tile = load_inputs(field.cfg(patch_run=dict(sky="free")))
        assert (
            np.isnan(tile.white[3, 4])
            and np.isinf(tile.white_sigma[3, 4])
            and np.isnan(tile.white).sum() == 1
        )

    def test_scaled_and_weighted(self, field):
        first, second = 10 + noise(0), 70 + noise(1)
        field.image("m400", first, ZP_AUTO=22.5, SKYSIG=0.2)
        field.image("m425", second, SKYSIG=4.0)
        tile = load_inputs(field.cfg(patch_run=dict(sky="free")))
        weights = np.array([1 / 2.0**2, 1 / 4.0**2])
        expected = weights @ [10 * first[0, 0], second[0, 0]] / weights.sum()
        assert tile.white[0, 0] == pytest.approx(expected, rel=1e-6)
        assert tile.white_sigma[0, 0] == pytest.approx(weights.sum() ** -0.5, rel=1e-6)

    def test_flux_scales_far_apart(self, field):
        field.image("m400", 1e-8 * noise(0), ZP_AUTO=0.0, SKYSIG=1e-8)
        field.image("m425", 1e6 * noise(1), ZP_AUTO=40.0, SKYSIG=1e6)
        tile = load_inputs(field.cfg())
        assert np.isfinite(tile.white).all() and tile.white.std() > 0

    def test_saturated_pixels_take_part(self, field):
        image = noise()
        image[10, 10] = 5000
        field.image("m400", image)
        tile = load_inputs(field.cfg())
        assert tile.white[10, 10] > 2000 and tile.saturated[10, 10] and tile.saturated.sum() == 1

    def test_threads_do_not_matter(self, field):
        bands = load_inputs(field.cfg()).bands
        one, many = stack_bands(bands, 1), stack_bands(bands, 5)
        assert one.white.tobytes() == many.white.tobytes() and one.sigma.tobytes() == many.sigma.tobytes()
        parts = [stack_strip(bands, box) for box in strips((120, 160), 7)]
        assert np.concatenate([part.white for part in parts]).tobytes() == one.white.tobytes()

    def test_weight_map_reaches_the_stack(self, field):
        weight = np.ones((120, 160), "f4")
        weight[:, :80] = 0.25
        for name in field.bands:
            fits.writeto(field.folder / f"{name}_weight.fits", weight)
        tile = load_inputs(field.cfg(inputs=dict(weight_suffix="_weight.fits")))
        assert tile.white_sigma[5, 5] / tile.white_sigma[5, 150] == pytest.approx(2, rel=1e-5)

    def test_an_image_without_values(self, field):
        field.image("m425", np.full((120, 160), np.nan, "f4"))
        with pytest.raises(UserError, match="m425.fits: no pixel with data"):
            load_inputs(field.cfg())


class TestExclusion:
    """Rows that are not measured, and why."""

    def test_reasons(self, field):
        image = noise()
        image[60, 80], image[14, 60] = 5000, 5000
        field.image("m400", image)
        positions = [(30, 30), (75, 60), (5, 60), (60, 5), (-0.6, 20), (400, 20)]
        table = rows_at(positions)
        table.loc[len(table)] = ["nan", np.nan, 2.0]
        table.loc[len(table)] = ["far", 10.0, -60.0]
        field.catalog(table)
        tile = load_inputs(field.cfg(crop=dict(margin=10)))
        assert list(tile.catalog.excluded_reason) == [
            "",
            "saturation",
            "crop",
            "crop+saturation",
            "off_frame",
            "off_frame",
            "no_coordinates",
            "off_frame",
        ]
        assert list(tile.catalog.excluded_any) == [False] + [True] * 7
        assert list(tile.catalog.excluded_crop) == [False, False] + [True] * 6
        assert list(tile.catalog.excluded_saturation)[:4] == [False, True, False, True]
        assert list(tile.active) == [True] + [False] * 7
        np.testing.assert_allclose(
            tile.catalog.loc[0, ["x_pix_white", "y_pix_white"]].astype(float), [20, 20], atol=1e-6
        )

    def test_without_crop(self, field):
        field.catalog(rows_at([(80, 60), (-0.3, 20), (159.9, 119.9)]))
        tile = load_inputs(field.cfg())
        assert list(tile.catalog.excluded_reason) == ["", "off_frame", ""]

    def test_columns_of_the_user_with_our_names(self, field):
        field.catalog(
            rows_at([(80, 60)], excluded_any="yes", excluded_crop="x", gaia_source_id="77", x_pix_white=3)
        )
        tile = load_inputs(field.cfg())
        assert (
            tile.active[0]
            and tile.catalog.gaia_source_id[0] == ""
            and tile.catalog.x_pix_white[0] == pytest.approx(80)
        )
        assert tile.catalog.columns.is_unique

    def test_far_rows_under_distortion(self, field):
        sip = dict(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", A_ORDER=2, B_ORDER=2, A_2_0=1e-5, B_1_1=1e-5)
        for i, name in enumerate(field.bands):
            field.image(name, noise(i), **sip)
        table = rows_at([(80, 60), (10, 10)])
        table.loc[len(table)] = ["b", 155.0, 4.0]
        table.loc[len(table)] = ["c", 330.0, -2.0]
        field.catalog(table)
        tile = load_inputs(field.cfg(crop=dict(margin=5)))
        assert list(tile.catalog.excluded_reason) == ["", "", "off_frame", "off_frame"]
        np.testing.assert_allclose(
            tile.wcs.all_pix2world(tile.catalog.x_pix_white[:2], tile.catalog.y_pix_white[:2], 0),
            table[["RA", "DEC"]].to_numpy(float)[:2].T,
            atol=1e-9,
        )

    def test_all_outside(self, field):
        field.catalog("ID,RA,DEC\na,10,20\nb,11,21\n")
        with pytest.raises(UserError, match=r"none of the 2 rows.*\(10, 20\).*corners.*check coordinates"):
            load_inputs(field.cfg())

    def test_saturation_in_all_bands(self, field):
        for i, name in enumerate(field.bands):
            image = noise(i)
            image[60, 40 + 3 * i] = 5000
            image[60, 100] = 5000 if i else 0
            field.image(name, image)
        field.catalog(rows_at([(42, 60), (100, 60), (150, 10)]))
        any_band, all_bands = (
            load_inputs(field.cfg(source_saturation_cut=dict(require_all_bands=v))) for v in (False, True)
        )
        assert list(any_band.catalog.excluded_saturation) == [True, True, False]
        assert list(all_bands.catalog.excluded_saturation) == [True, False, False]
        off = load_inputs(field.cfg(source_saturation_cut=dict(enabled=False)))
        assert not off.catalog.excluded_saturation.any() and off.saturated.any()

    def test_bands_without_saturate(self, field):
        field.image("m400", 9000 + noise(), SATURATE=None)
        field.image("m425", noise(), SATURATE=None)
        for cut in (dict(), dict(require_all_bands=True)):
            assert not load_inputs(field.cfg(source_saturation_cut=cut)).catalog.excluded_any.any()

    def test_distance_is_that_of_a_disk(self):
        mask = np.zeros((60, 60), bool)
        mask[30, 30] = True
        near = near_pixels(mask, [50, 50.4, 50.6, 45, 44.4, 44.5], [30, 30.4, 30, 44, 44, 44.6], 20)
        assert list(near) == [True, True, False, False, True, False]


class TestDoor:
    """All problems of all inputs in one message."""

    def test_everything_at_once(self, field):
        field.image("m425", noise(), SKYSIG=-1.0)
        field.catalog("ID,RA\na,1\n")
        field.gaia("ra,dec,mag_m400\n150,2,15\n")
        with pytest.raises(UserError) as caught:
            load_inputs(field.cfg(zp=dict(enabled=True)))
        text = str(caught.value)
        assert text.count("\n") == 2 and all(
            word in text for word in ("SKYSIG", "no column DEC", "source_id, phot_g_mean_mag")
        )

    def test_warnings_are_logged(self, field, caplog):
        field.image("m425", noise(), SATURATE=None)
        with caplog.at_level("INFO", "tract7dt"):
            load_inputs(field.cfg())
        assert any(r.levelname == "WARNING" and "no saturation mask" in r.message for r in caplog.records)
        assert any("1 active" in r.message for r in caplog.records) and any(
            "white stack" in r.message for r in caplog.records
        )

    def test_missing_gaia_table_is_a_warning(self, field, caplog):
        load_inputs(
            field.cfg(zp=dict(enabled=True), inputs=dict(gaiaxp_synphot_csv=str(field.folder / "none.csv")))
        )
        found = [r.message for r in caplog.records if "gaiaxp_synphot_csv" in r.message]
        assert len(found) == 1 and all(
            w in found[0] for w in ("none.csv", "PSF stars", "zero points", "null", "zp.enabled")
        )

    def test_different_shapes_when_allowed(self, field):
        field.image("m425", noise(1, (100, 160)))
        tile = load_inputs(field.cfg(checks=dict(require_same_shape=False)))
        assert (tile.read("m425").mask[100:] == MaskBit.OUTSIDE).all() and np.isfinite(tile.white).all()


def test_bright_mask_reaches_the_pixels(field):
    tile = load_inputs(field.cfg(crop=dict(margin=10)))
    mask = np.zeros(tile.shape, bool)
    mask[5, 7] = True
    pixels = dataclasses.replace(tile, bright_mask=mask).read(tile.bands[0], Box(-2, 10, 3, 9))
    assert pixels.mask[2, 9] == MaskBit.BRIGHT and (pixels.mask[:, 2:] == MaskBit.BRIGHT).sum() == 1


@pytest.mark.parametrize("sip", [False, True])
def test_wcs_file(field, sip):
    cards = (
        dict(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", A_ORDER=2, B_ORDER=2, A_2_0=1e-5, B_1_1=1e-5)
        if sip
        else {}
    )
    for i, name in enumerate(field.bands):
        field.image(name, noise(i), **cards)
    cfg = field.cfg(crop=dict(margin=10))
    tile = load_inputs(cfg)
    layout = dataclasses.replace(Layout.of(cfg.outputs), work_dir=field.folder / "work")
    write_wcs(tile, layout)
    with fits.open(layout.wcs_fits) as hdus:
        assert hdus[0].data.shape == (1, 1) and hdus[0].data.dtype == np.uint8
        written = WCS(hdus[0].header, hdus)
    expected = tile.bands[0].wcs.all_pix2world([10, 110], [10, 60], 0)
    np.testing.assert_allclose(written.all_pix2world([0, 100], [0, 50], 0), expected, atol=1e-10)
