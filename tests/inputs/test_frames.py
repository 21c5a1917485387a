"""Images: every way a pixel can be stored, every thing that can be wrong with a header."""

import gzip
import pickle
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from small_inputs import Field, header, noise

from tract7dt.config.schema import Config
from tract7dt.core.errors import Problems, UserError
from tract7dt.core.geometry import Box
from tract7dt.inputs.band import MaskBit, relative_factor
from tract7dt.inputs.fits import locate_image
from tract7dt.inputs.headers import read_bands

SHAPE = (120, 160)


@pytest.fixture
def field(tmp_path):
    return Field(tmp_path)


def problems_of(field, **sections):
    problems = Problems()
    bands = read_bands(field.cfg(**sections), problems)
    return bands, problems


def only_error(field, *needles, **sections):
    _, problems = problems_of(field, **sections)
    assert len(problems.errors) == 1, problems.errors
    for needle in needles:
        assert str(needle) in problems.errors[0]


class TestPixels:
    """What is read is what was written, however it was written."""

    def write(self, path, counts, kind):
        cards = header(SHAPE)
        if kind == "unsigned":
            hdu = fits.PrimaryHDU(counts.astype("u2"), cards)
        elif kind == "scaled":
            hdu = fits.PrimaryHDU(counts.astype("i2"), cards)
            hdu.scale("int16", bscale=0.25, bzero=1000)
        elif kind in ("float32", "float64", "int32", "int16", "uint8"):
            hdu = fits.PrimaryHDU(counts.astype(kind), cards)
        else:
            dtype = "f4" if kind == "tiled float" else "i2"
            hdus = [
                fits.PrimaryHDU(),
                fits.CompImageHDU(
                    counts.astype(dtype),
                    cards,
                    compression_type="GZIP_2" if dtype == "f4" else "RICE_1",
                    quantize_level=0,
                ),
            ]
            return fits.HDUList(hdus).writeto(path)
        hdu.writeto(path)

    def test_values_too_large_for_the_image_are_no_data(self, field):
        """A finite double of 1e300 is infinite in float32: it is masked, and the image holds a number."""
        counts = noise().astype("f8")
        counts[3, 4], counts[5, 6] = 1e300, -1e300
        self.write(field.folder / "a.fits", counts, "float64")
        field.list("a.fits")
        pixels = read_bands(field.cfg(), Problems())[0].read()
        assert np.isfinite(pixels.image).all() and (pixels.mask & MaskBit.NON_FINITE).nonzero()[
            0
        ].tolist() == [3, 5]

    @pytest.mark.parametrize(
        "kind",
        ["float32", "float64", "int32", "int16", "uint8", "unsigned", "scaled", "tiled float", "tiled int"],
    )
    @pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
    def test_every_storage(self, field, kind, ending):
        counts = np.random.default_rng(1).integers(0, 200, SHAPE).astype(float)
        self.write(field.folder / f"a{ending}", counts, kind)
        field.list(f"a{ending}")
        bands, problems = problems_of(field)
        assert problems.errors == []
        box = Box(11, 47, 90, 120)
        pixels = bands[0].read(box)
        np.testing.assert_allclose(pixels.image, counts[box.slices], rtol=1e-6)
        assert (
            pixels.image.dtype == np.float32 and pixels.image.dtype.isnative and pixels.mask.dtype == np.uint8
        )
        np.testing.assert_array_equal(bands[0].read().image[box.slices], pixels.image)

    def test_integer_blank_is_no_value(self, field):
        hdu = fits.PrimaryHDU(np.arange(np.prod(SHAPE)).reshape(SHAPE).astype("i4"), header(SHAPE))
        hdu.header["BLANK"] = 17
        hdu.writeto(field.folder / "a.fits")
        field.list("a.fits")
        bands, _ = problems_of(field)
        assert bands[0].read().mask[0, 17] == MaskBit.NON_FINITE

    def test_a_section_equals_the_part_of_the_whole(self, field):
        bands, _ = problems_of(field, crop=dict(margin=13))
        whole = bands[0].read()
        box = Box(-4, 20, 80, 99)
        part = bands[0].read(box)
        inside = box.clip(Box.of_shape(whole.mask.shape))
        np.testing.assert_array_equal(part.image[inside.shift(4, -80).slices], whole.image[inside.slices])
        assert (part.mask == MaskBit.OUTSIDE).sum() == part.mask.size - inside.width * inside.height
        assert part.image[part.mask != 0].sum() == 0

    def test_a_box_outside_the_frame(self, field):
        bands, _ = problems_of(field)
        far = bands[0].read(Box(500, 510, 0, 3))
        assert (far.mask == MaskBit.OUTSIDE).all() and far.invvar.sum() == 0

    def test_saturation_is_judged_on_raw_counts(self, field):
        image = noise()
        image[5, 6], image[7, 8], image[9, 9] = 1000, 999.9, np.inf
        field.image("m400", image, ZP_AUTO=20.0)
        bands, _ = problems_of(field)
        mask = bands[0].read().mask
        assert (mask[5, 6], mask[7, 8], mask[9, 9]) == (MaskBit.SATURATED, 0, MaskBit.NON_FINITE)
        assert bands[0].scale == pytest.approx(100) and bands[0].sky_sigma == pytest.approx(100)
        assert bands[0].gain_scaled == pytest.approx(0.02)

    def test_a_band_is_small_and_travels(self, field):
        bands, _ = problems_of(field)
        message = pickle.dumps(bands[0])
        assert len(message) < 20_000
        np.testing.assert_array_equal(
            pickle.loads(message).read(Box(0, 5, 0, 5)).image, bands[0].read(Box(0, 5, 0, 5)).image
        )

    def test_damaged_tiles_are_a_user_error(self, field):
        path = field.folder / "a.fits"
        fits.HDUList(
            [fits.PrimaryHDU(), fits.CompImageHDU(noise(), header(SHAPE), compression_type="GZIP_1")]
        ).writeto(path)
        raw = bytearray(path.read_bytes())
        with fits.open(path, disable_image_compression=True) as hdus:
            start = hdus[1].fileinfo()["datLoc"] + 120 * 16 + 400
        raw[start : start + 3000] = b"\xff" * 3000
        path.write_bytes(raw)
        field.list("a.fits")
        bands, problems = problems_of(field)
        assert problems.errors == []
        with pytest.raises(UserError, match="a.fits: cannot read pixels"):
            bands[0].read()

    def test_truncated_gzip(self, field):
        path = field.folder / "a.fits.gz"
        fits.writeto(path, noise(), header(SHAPE))
        path.write_bytes(path.read_bytes()[:-20000])
        field.list("a.fits.gz")
        bands, problems = problems_of(field)
        with pytest.raises(UserError, match="a.fits.gz"):
            problems.raise_if_any()
            bands[0].read()


class TestWeights:
    """Weight maps turn the noise into a map."""

    def weighted(self, field, weight, **inputs):
        fits.writeto(field.folder / "m400_w.fits", weight, overwrite=True)
        fits.writeto(field.folder / "m425_w.fits", np.ones(SHAPE, "f4"), overwrite=True)
        return problems_of(field, inputs=dict(weight_suffix="_w.fits", **inputs))

    def test_relative_weights_follow_skysig(self, field):
        weight = np.full(SHAPE, 40, "f4")
        weight[:30], weight[0, 0], weight[0, 1] = 10, 0, np.nan
        bands, problems = self.weighted(field, weight)
        assert problems.errors == []
        pixels = replace(bands[0], weight_factor=relative_factor(bands[0])).read()
        assert pixels.sky_sigma[60, 60] == pytest.approx(1) and pixels.sky_sigma[10, 10] == pytest.approx(2)
        assert (pixels.mask[0, :3] == [MaskBit.NON_FINITE, MaskBit.NON_FINITE, 0]).all() and pixels.invvar[
            0, 0
        ] == 0
        assert pixels.invvar[60, 60] == pytest.approx(1)

    def test_inverse_variance_as_it_is(self, field):
        bands, _ = self.weighted(field, np.full(SHAPE, 0.25, "f4"), weight_type="invvar")
        assert bands[0].read(Box(0, 2, 0, 2)).sky_sigma[0, 0] == pytest.approx(2)

    def test_outside_has_infinite_noise(self, field):
        bands, _ = self.weighted(field, np.ones(SHAPE, "f4"))
        pixels = bands[0].read(Box(-2, 2, 0, 2))
        assert np.isinf(pixels.sky_sigma[:, :2]).all() and (pixels.invvar[:, :2] == 0).all()

    def test_missing_or_misshapen_map(self, field):
        fits.writeto(field.folder / "m400_w.fits", np.ones((3, 4), "f4"))
        _, problems = problems_of(field, inputs=dict(weight_suffix="_w.fits"))
        assert len(problems.errors) == 2
        assert "(3, 4)" in problems.errors[0] and "m425_w.fits: no such file" in problems.errors[1]

    def test_negative_weights(self, field):
        weight = np.ones(SHAPE, "f4")
        weight[3, 3] = -1
        bands, _ = self.weighted(field, weight)
        with pytest.raises(UserError, match="negative"):
            bands[0].read()


class TestImageList:
    """The list of images."""

    def test_missing_list(self, field):
        only_error(
            field,
            "inputs.image_list_file",
            "nothere.txt",
            inputs=dict(image_list_file="/nowhere/nothere.txt"),
        )

    def test_list_without_entries(self, field):
        field.list("# nothing", "", "   ")
        only_error(field, field.folder / "images.txt", "one FITS path per line")

    def test_same_path_twice(self, field):
        field.list("m400.fits", "./m425.fits", "m400.fits")
        only_error(field, "lines 1, 3", "m400.fits")

    def test_missing_image(self, field):
        field.list("m400.fits", "", "gone.fits")
        only_error(field, field.folder / "gone.fits", "images.txt line 3", field.folder)


class TestHeaders:
    """One message per mistake, with what the user needs to mend it."""

    def test_not_fits(self, field):
        (field.folder / "m425.fits").write_text("hello")
        only_error(field, "m425.fits", "2-D image in the primary HDU")

    def test_empty_file(self, field):
        (field.folder / "m425.fits").write_bytes(b"")
        only_error(field, "m425.fits", "2-D image in the primary HDU")

    def test_truncated(self, field):
        path = field.folder / "m425.fits"
        path.write_bytes(path.read_bytes()[:30000])
        only_error(field, path, "truncated", "30000")

    def test_truncated_tiles(self, field):
        path = field.folder / "m425.fits"
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(noise(), header(SHAPE, FILTER="m425"))]).writeto(
            path, overwrite=True
        )
        path.write_bytes(path.read_bytes()[:-9000])
        only_error(field, path, "truncated")

    def test_cube(self, field):
        field.image("m425", np.zeros((2, 120, 160), "f4"))
        only_error(field, "m425.fits", "(2, 120, 160)", "2-D")

    def test_two_extensions(self, field):
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(noise(), header(SHAPE)), fits.ImageHDU(noise())]
        fits.HDUList(hdus).writeto(field.folder / "m425.fits", overwrite=True)
        only_error(field, "m425.fits", "HDU 2", "2-D")

    def test_cards_in_the_primary_header_of_an_extension_file(self, field):
        cards = header(SHAPE, FILTER="m425")
        fits.HDUList([fits.PrimaryHDU(header=cards), fits.ImageHDU(noise())]).writeto(
            field.folder / "m425.fits", overwrite=True
        )
        bands, problems = problems_of(field)
        assert problems.errors == [] and (bands[1].name, bands[1].hdu) == ("m425", 1)

    @pytest.mark.parametrize("value", [None, "  "])
    def test_no_filter(self, field, value):
        field.image("m425", noise(), **({} if value else dict(FILTER=None)))
        if value:
            fits.setval(field.folder / "m425.fits", "FILTER", value=value)
        only_error(field, "m425.fits", "FILTER")

    def test_filter_as_number(self, field):
        field.image("m425", noise())
        fits.setval(field.folder / "m425.fits", "FILTER", value=425)
        bands, problems = problems_of(field)
        assert problems.errors == [] and bands[1].name == "425"

    def test_two_images_of_one_filter(self, field):
        field.image("m425", noise(), band="m400")
        only_error(field, "m400.fits", "m425.fits", "'m400'", "one image per band")

    @pytest.mark.parametrize("value", [None, "bright", 1e9])
    def test_bad_zero_point(self, field, value):
        field.image("m425", noise(), ZP_AUTO=value)
        only_error(
            field, "m425.fits", "ZP_AUTO", "missing" if value is None else repr(value), "finite AB zero point"
        )

    @pytest.mark.parametrize("key, unit", [("SKYSIG", "ADU"), ("EGAIN", "e-/ADU")])
    @pytest.mark.parametrize("value", [None, 0.0, -2.0, "x"])
    def test_bad_noise(self, field, key, unit, value):
        field.image("m425", noise(), **{key: value})
        only_error(field, "m425.fits", key, "missing" if value is None else repr(value), unit)

    def test_no_saturate(self, field):
        field.image("m425", noise(), SATURATE=None)
        bands, problems = problems_of(field)
        assert problems.errors == [] and bands[1].saturation_level is None
        assert any("m425.fits" in w and "no saturation mask" in w for w in problems.warnings)

    @pytest.mark.parametrize("value", [0.0, -1.0])
    def test_senseless_saturate(self, field, value):
        field.image("m425", noise(), SATURATE=value)
        only_error(field, "m425.fits", "SATURATE", value, "positive ADU")

    def test_seeing_is_converted_from_arcsec(self, field):
        field.image("m425", noise(), PEEING=-1.0, SEEING=1.515)
        bands, _ = problems_of(field)
        assert bands[1].fwhm_pix == pytest.approx(3.0, rel=1e-6)

    def test_no_fwhm(self, field):
        field.image("m425", noise(), PEEING=None)
        bands, problems = problems_of(field)
        assert bands[1].fwhm_pix is None
        assert any("PEEING" in w and "SEEING" in w and "3 pix" in w for w in problems.warnings)

    def test_no_wcs(self, field):
        field.image("m425", noise(), CRVAL1=None, CTYPE2=None)
        only_error(field, "m425.fits", "CTYPE2", "CRVAL1", "no usable celestial WCS")

    def test_singular_wcs(self, field):
        field.image("m425", noise(), CD1_1=0.0)
        only_error(field, "m425.fits", "no usable celestial WCS", "singular")

    def test_shape_differs(self, field):
        field.image("m425", noise(0, (120, 161)))
        only_error(field, "m400.fits", "m425.fits", "(120, 160)", "(120, 161)", "resample")

    @pytest.mark.parametrize(
        "card, value, element, key",
        [
            ("CRVAL1", 150.001, "CRVAL1", "crval"),
            ("CRPIX2", 61.0, "CRPIX2", "crpix"),
            ("CD1_2", 1e-8, "CD1_2", "cd"),
        ],
    )
    def test_wcs_differs(self, field, card, value, element, key):
        field.image("m425", noise(), **{card: value})
        only_error(field, "m400.fits", "m425.fits", element, value, f"wcs_tolerance.{key}")

    def test_polynomials_differ(self, field):
        cards = dict(CTYPE1="RA---TPV", CTYPE2="DEC--TPV", PV1_1=1.0, PV2_1=1.0)
        field.image("m400", noise(), **cards)
        field.image("m425", noise(), **cards | dict(PV2_1=1.001))
        only_error(field, "m400.fits", "m425.fits", "the same pixel lies up to 0.06 pix away")

    def test_distortion_counts(self, field):
        sip = dict(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", A_ORDER=2, B_ORDER=2, A_2_0=1e-6, B_1_1=1e-6)
        field.image("m400", noise(), **sip)
        field.image("m425", noise(), **sip | dict(B_1_1=2e-6))
        only_error(field, "SIP B_1_1", "1e-06", "2e-06")
        field.image("m425", noise(), **sip)
        assert problems_of(field)[1].errors == []

    def test_within_tolerance_or_not_checked(self, field):
        field.image("m425", noise(), CRVAL1=150.0 + 5e-7)
        assert problems_of(field)[1].errors == []
        field.image("m425", noise(), CRVAL1=151.0)
        assert problems_of(field, checks=dict(require_wcs_alignment=False))[1].errors == []

    def test_crop_leaves_nothing(self, field):
        only_error(field, "crop.margin", "(120, 160)", "largest legal value is 59", crop=dict(margin=60))

    def test_all_at_once(self, field):
        field.image("m400", noise(), SKYSIG=0.0, ZP_AUTO=None, CRPIX1=None)
        field.image("m425", noise(), EGAIN="x", SATURATE=-1.0)
        field.list("m400.fits", "m425.fits", "gone.fits")
        _, problems = problems_of(field)
        assert len(problems.errors) == 6

    def test_a_band_name_must_make_a_folder_of_its_own(self, field):
        field.image("m400", noise(), band="g'")
        field.image("m425", noise(), band="g+")
        only_error(field, "m400.fits", "m425.fits", "folder")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.timeout(60)
def test_a_header_that_announces_endless_axes_is_refused_at_once(tmp_path, suffix):
    """Asking for the length of each of a billion axes would take hours."""
    fits.writeto(tmp_path / "a.fits", noise(), header(SHAPE))
    data = bytearray((tmp_path / "a.fits").read_bytes())
    card = data.index(b"NAXIS   =")
    data[card + 10 : card + 30] = b"%20d" % 999_999_999
    path = tmp_path / f"endless.fits{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(UserError, match="endless.fits.*NAXIS is 999999999; expected 2"):
        locate_image(path)


def test_a_history_that_speaks_of_axes_is_no_damage(tmp_path):
    """Nor are pixels that happen to be those letters."""
    image, text = noise().astype(">f4"), b"NAXIS   =       9576"
    image.view("u1").ravel()[1001:1021] = list(text)
    fits.writeto(
        tmp_path / "a.fits",
        image,
        header(SHAPE, HISTORY="resampled from NAXIS = 9576 x 6388", COMMENT="NAXIS = 1000000"),
    )
    place, _ = locate_image(tmp_path / "a.fits")
    assert text in (tmp_path / "a.fits").read_bytes() and place.shape == SHAPE


@pytest.mark.parametrize("start", [b"\xfd7zXZ\x00", b"BZh9", b"\x1f\x8b\x08"])
@pytest.mark.parametrize("rest", [b"", b"no pixels " * 300])
def test_an_image_that_only_looks_packed_is_refused(tmp_path, start, rest):
    (tmp_path / "a.fits").write_bytes(start + rest)
    with pytest.raises(UserError, match="a.fits: not a readable FITS file .*expected a 2-D image"):
        locate_image(tmp_path / "a.fits")


@pytest.mark.parametrize("zp_ref", [21705735, -101, 1e300])
def test_a_zero_point_that_no_flux_can_have_is_refused(zp_ref):
    with pytest.raises(ValueError, match="zp_ref"):
        Config(image_scaling=dict(zp_ref=zp_ref))
