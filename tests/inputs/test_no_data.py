"""What is no data, however it was written; masks that come with images."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from small_inputs import Field, header, noise

from tract7dt.core.errors import Problems
from tract7dt.core.geometry import Box
from tract7dt.inputs.band import MaskBit
from tract7dt.inputs.headers import read_bands

SHAPE = (120, 160)
HOLE = Box(60, 110, 30, 75)


@pytest.fixture
def field(tmp_path):
    return Field(tmp_path)


def opened(field, **inputs):
    problems = Problems()
    bands = read_bands(field.cfg(inputs=inputs), problems)
    assert not problems.errors
    return bands[0]


def hole_in(counts, value):
    counts = counts.copy()
    counts[HOLE.slices] = value
    return counts


class TestHoles:
    """Pixels without data are as absent as NaN, whatever stands in their place."""

    @pytest.mark.parametrize("value", [0.0, 7.5, -3e4])
    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_constant(self, field, value, dtype):
        field.image("m400", hole_in(noise(), np.nan))
        expected = opened(field).read()
        field.image("m400", hole_in(noise().astype(dtype), value))
        pixels = opened(field).read()
        assert np.array_equal(pixels.mask, expected.mask) and np.array_equal(pixels.image, expected.image)

    def test_blank_in_integers(self, field):
        counts = np.rint(100 * noise()).astype("i4")
        field.image("m400", hole_in(counts, -99999), BLANK=-99999)
        mask = opened(field).read().mask
        assert (mask[HOLE.slices] == MaskBit.NON_FINITE).all() and np.count_nonzero(mask) == 50 * 45

    def test_blank_in_tiles(self, field):
        """In a tile-compressed image, with a scale."""
        counts = np.rint(1000 * noise()).astype("i4")
        packed = fits.CompImageHDU(hole_in(counts, -99999), header(SHAPE), compression_type="RICE_1")
        packed.header["BSCALE"], packed.header["BLANK"] = 0.001, -99999
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(field.folder / "m400.fits", overwrite=True)
        mask = opened(field).read().mask
        assert (mask[HOLE.slices] == MaskBit.NON_FINITE).all() and np.count_nonzero(mask) == 50 * 45

    def test_weight_zero(self, field):
        for name in field.bands:
            fits.writeto(field.folder / f"{name}_weight.fits", hole_in(np.ones(SHAPE, "f4"), 0))
        pixels = opened(field, weight_suffix="_weight.fits", weight_type="invvar").read()
        assert (pixels.mask[HOLE.slices] == MaskBit.NON_FINITE).all()
        assert np.isinf(pixels.sky_sigma[HOLE.slices]).all() and not pixels.image[HOLE.slices].any()

    def test_dithered(self, field):
        """A lossy compression with dither leaves no two pixels equal."""
        packed = fits.CompImageHDU(
            hole_in(noise(), 0),
            header(SHAPE),
            compression_type="RICE_1",
            quantize_level=16,
            quantize_method=1,
        )
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(field.folder / "m400.fits", overwrite=True)
        mask = opened(field).read().mask
        assert (mask[HOLE.slices] == MaskBit.NON_FINITE).all() and np.count_nonzero(mask) == 50 * 45

    def test_any_box_says_the_same(self, field):
        counts = noise()
        counts[40, 20:29], counts[50, 20:28], counts[:, 100], counts[60:69, 31] = 1, 1, 2, 3
        field.image("m400", counts)
        band, rng = opened(field), np.random.default_rng(3)
        whole = band.read()
        assert whole.mask[40, 20:29].all() and not whole.mask[50, 20:28].any() and whole.mask[:, 100].all()
        for _ in range(60):
            x, y = rng.integers(0, 160), rng.integers(0, 120)
            box = Box(x, min(160, x + rng.integers(1, 30)), y, min(120, y + rng.integers(1, 30)))
            assert np.array_equal(band.read(box).mask, whole.mask[box.slices])
        cropped = replace(band, crop=Box(22, 150, 3, 110)).read()
        assert np.array_equal(cropped.mask, whole.mask[3:110, 22:150])

    def test_the_flat_top_of_a_star_is_saturated(self, field):
        """With a card below the plateau, and without any."""
        y, x = np.mgrid[:120, :160]
        star = np.minimum(5e4 * np.exp(-((x - 80.3) ** 2 + (y - 60.1) ** 2) / 18), 2e4).astype("f4")
        for card in (1.9e4, None):
            field.image("m400", np.where(star >= 2e4, np.float32(2e4), noise() + star), SATURATE=card)
            mask = opened(field).read().mask
            assert (mask[star >= 2e4] == MaskBit.SATURATED).all()
            assert not (mask & MaskBit.NON_FINITE).any()

    def test_integers_that_repeat_by_themselves(self, field):
        """Noise of half a count and of six counts; only the finer one has blocks that mean something."""
        coarse, fine = np.rint(0.5 * noise()).astype("i2"), np.rint(6 * noise()).astype("i2")
        field.image("m400", hole_in(coarse, 0))
        assert not opened(field).read().mask.any()
        field.image("m400", hole_in(fine, 0))
        mask = opened(field).read().mask
        assert mask[HOLE.slices].all() and np.count_nonzero(mask) < 50 * 45 + 25


class TestMasks:
    """Masks of integers beside the images."""

    def write(self, field, mask, **how):
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(mask, name="DQ", **how)]
        for name in field.bands:
            fits.HDUList(hdus).writeto(field.folder / f"{name}_mask.fits", overwrite=True)

    @pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4"])
    def test_flags_equal_a_plain_sum(self, field, dtype):
        rng, values = np.random.default_rng(2), [1 << k for k in range(8 * np.dtype(dtype).itemsize - 1)]
        planes = [rng.random(SHAPE) < 0.05 for _ in values]
        total = sum(v * p.astype(np.int64) for v, p in zip(values, planes))
        self.write(field, total.astype(dtype))
        band = opened(field, mask_suffix="_mask.fits", mask_reject=[1, 4])
        pixels = band.read(Box(7, 160, 11, 120))
        assert np.array_equal(pixels.bits, total[11:, 7:])
        rejected = (planes[0] | planes[2])[11:, 7:]
        assert np.array_equal(pixels.mask, np.where(rejected, MaskBit.REJECTED, 0))
        assert np.array_equal(pixels.image, noise()[11:, 7:])

    def test_all_by_default_and_names(self, field):
        mask = np.zeros(SHAPE, "u1")
        mask[3, 4], mask[5, 6], mask[7, 8], mask[9, 9] = 8, 16, 128, 32
        self.write(field, mask)
        assert np.count_nonzero(opened(field, mask_suffix="_mask.fits[DQ]").read().mask) == 4
        names = ["satellite", "SATURATED", "NODATA"]
        found = opened(field, mask_suffix="_mask.fits", mask_reject=names).read()
        assert [found.mask[3, 4], found.mask[5, 6], found.mask[7, 8], found.mask[9, 9]] == [
            MaskBit.REJECTED,
            MaskBit.SATURATED,
            MaskBit.NON_FINITE,
            0,
        ]

    @pytest.mark.parametrize(
        "inputs, words",
        [
            (dict(mask_suffix="_none.fits"), "no such file"),
            (dict(mask_suffix="_mask.fits[FLAGS]"), "there are DQ"),
            (dict(mask_suffix="_mask.fits", mask_reject=["COMET"]), "COMET"),
        ],
    )
    def test_what_is_wrong_is_said(self, field, inputs, words):
        self.write(field, np.zeros(SHAPE, "u1"))
        problems = Problems()
        read_bands(field.cfg(inputs=inputs), problems)
        assert len(problems.errors) == 2 and all(words in error for error in problems.errors)
