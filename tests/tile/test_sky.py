"""The sky of a tile: unbiased between sources that GalSim drew, flat after slopes and pedestals, kept with a
run.
"""

from dataclasses import replace

import galsim
import numpy as np
import pytest
from small_inputs import Field, noise

from tract7dt.core.errors import UserError
from tract7dt.core.geometry import Box
from tract7dt.tile.load import load_inputs
from tract7dt.tile.sky import (
    STEP,
    Mesh,
    find_sources,
    fit_map,
    measure_levels,
    measure_sky,
    source_mask,
    with_saved_sky,
    write_skies,
)
from tract7dt.workdir.layout import Layout

SIDE, FWHM = 640, 3.2
POINT = 4.8  # noise of the flux of a star over that of a pixel, Moffat of that FWHM
STAR = galsim.Moffat(beta=3.0, fwhm=FWHM)


def light(rng, area, large=0, faintest=0.5):
    """Stars and galaxies, one of S/N > 5 for each `area` pixels, number counts with a slope of 0.9, and
    `large` galaxies with half-light radii of 6 to 15 pixels; also the mean light of those below S/N 3.
    """
    count = int(SIDE**2 / area * (5 / faintest) ** 0.9)
    snr = faintest * (rng.uniform(size=count) * (1 - (faintest / 3e3) ** 0.9) + (faintest / 3e3) ** 0.9) ** (
        -1 / 0.9
    )
    flux = np.append(POINT * snr, 10 ** rng.uniform(2.5, 3.8, large))
    radius = np.append(
        np.where(rng.uniform(size=count) < 0.6, rng.uniform(1, 2.5, count), 0), rng.uniform(6, 15, large)
    )
    image = galsim.ImageD(SIDE, SIDE)
    image.setOrigin(0, 0)
    for total, re in zip(flux, radius):
        x, y = rng.uniform(0, SIDE, 2)
        profile = STAR if re == 0 else galsim.Convolve(galsim.Exponential(half_light_radius=re), STAR)
        half = int(max(25 if total < 500 else 80, 8 * re))
        stamp = galsim.ImageD(2 * half + 1, 2 * half + 1)
        stamp.setCenter(round(x), round(y))
        profile.withFlux(total).drawImage(stamp, scale=1, center=galsim.PositionD(x, y))
        common = stamp.bounds & image.bounds
        if common.isDefined():
            image[common] += stamp[common]
    return image.array, flux[flux < 3 * POINT].sum() / SIDE**2


def measured(image, sources):
    mesh = Mesh(image.shape)
    levels = measure_levels(lambda box: (image[box.slices], ~sources[box.slices]), mesh, STEP)
    return fit_map(levels, mesh, STEP**2)


# limits: the bias that a fit may have, 0.005 of the noise of a pixel, which holds the error of the mean of a
# frame, 0.002; crowded: half of the pixels have light of some source, see the table of the notebook
@pytest.mark.parametrize("area, large, limit", [(7000, 0, 0.005), (7000, 10, 0.005), (1500, 0, 0.010)])
def test_bias_between_sources(area, large, limit):
    rng = np.random.default_rng(area + large)
    drawn, faint = light(rng, area, large)
    image = (drawn + rng.normal(0, np.sqrt(1 + np.maximum(drawn, 0) / 30))).astype("f4")
    sources, _ = find_sources(image, np.ones_like(image), FWHM)
    sky = measured(image, sources)
    off = sky.image(Box.of_shape(image.shape)) - faint
    assert abs(off.mean()) < limit
    assert off.std() < 0.012 and 0.004 < sky.error < 0.02


def test_both_signs_are_set_aside():
    "On noise alone nothing is pulled to either side, and the claimed error is the true one."
    offs, errors = [], []
    for seed in range(6):
        image = np.random.default_rng(seed).normal(size=(SIDE, SIDE)).astype("f4")
        sources, _ = find_sources(image, np.ones_like(image), FWHM)
        sky = measured(image, sources)
        offs.append(sky.image(Box.of_shape(image.shape)))
        errors.append(sky.error)
    assert abs(np.mean(offs)) < 0.002  # 6 frames: 0.0008
    assert 0.6 < np.std(offs) / np.mean(errors) < 1.2


@pytest.fixture
def field(tmp_path):
    return Field(tmp_path, shape=(300, 360))


def planes(shape, *terms):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return [a + b * x / shape[1] + c * y / shape[0] for a, b, c in terms]


def test_pedestals_and_slopes_leave_no_trace(field):
    flat = load_inputs(field.cfg())
    images = [band.read().image for band in flat.bands]
    for i, (band, plane) in enumerate(zip(field.bands, planes(field.shape, (-300, 40, 0), (800, -5, 20)))):
        field.image(band, (noise(i, field.shape) + plane).astype("f4"), SATURATE=1e5)
    tile = load_inputs(field.cfg())
    for image, other in zip(images, tile.bands):
        off = other.read().image - image
        assert abs(off.mean()) < 0.004 and off.std() < 0.012
    assert abs(tile.white.mean()) < 0.02 and tile.white.std() == pytest.approx(flat.white.std(), rel=0.01)


def test_a_band_with_a_gap_makes_no_step(field):
    "One band lies 50 of its noise high and has no data in a corner: the stack is as flat there as elsewhere."
    image = noise(0, field.shape) + 50
    image[:150, :180] = np.nan
    field.image("m400", image)
    tile = load_inputs(field.cfg())
    corner, rest = tile.white[20:130, 20:160], tile.white[170:, 200:]
    assert abs(corner.mean()) < 0.05 and abs(rest.mean()) < 0.05
    assert not tile.sources[20:130, 20:160].mean() > 0.5


def test_free_measures_nothing(field):
    tile = load_inputs(field.cfg(patch_run=dict(sky="free")))
    assert all(band.sky is None for band in tile.bands) and tile.sources is None
    assert source_mask(tile).shape == field.shape


@pytest.mark.parametrize("shape", [(9, 12), (40, 700), (64, 64), (65, 130)])
def test_frames_of_any_shape(tmp_path, shape):
    small = Field(tmp_path, shape=shape)
    tile = load_inputs(small.cfg())
    for band in tile.bands:
        assert band.sky is None or np.isfinite(band.sky.nodes).all()
        assert np.isfinite(band.read().image).all()


def test_no_sky_to_be_seen(field, caplog):
    """A frame full of light of sources: the band is left as it is, and that is said."""
    tile = load_inputs(field.cfg(patch_run=dict(sky="free")))
    full = replace(tile, white=np.full_like(tile.white, np.nan))
    with caplog.at_level("INFO"):
        same = measure_sky(full, field.cfg())
    assert all(band.sky is None for band in same.bands)
    assert "nothing of it can be seen" in caplog.text


def test_threads_do_not_matter(field):
    one, many = (load_inputs(field.cfg(performance=dict(frame_prep_workers=n))) for n in (1, 4))
    for a, b in zip(one.bands, many.bands):
        np.testing.assert_array_equal(a.sky.nodes, b.sky.nodes)
    np.testing.assert_array_equal(one.white, many.white)


def test_kept_with_the_run(field):
    cfg = field.cfg()
    layout, tile = Layout.of(cfg.outputs), load_inputs(cfg)
    write_skies(tile, layout)
    bare = replace(tile.bands[0], sky=None)
    np.testing.assert_array_equal(with_saved_sky(bare, layout).read().image, tile.bands[0].read().image)
    layout.sky_map("m400").write_bytes(b"SIMPLE  =                    T")
    with pytest.raises(UserError, match="m400_sky.fits"):
        with_saved_sky(bare, layout)
