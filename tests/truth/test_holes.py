"""A hole in one band of the sample tile: nothing is measured there, and all else is as it was."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits

from tract7dt.config.load import load_config
from tract7dt.epsf.band_task import StarsSeen
from tract7dt.fit.flags import FitFlag
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.geometry import build_patches
from tract7dt.patches.payload import build_patch_inputs
from tract7dt.patches.problem import load_psfs
from tract7dt.pipeline.estimate import report
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("sample_run")
X0, Y0, SIDE, BAND = 300, 300, 300, "m575"


def with_hole(folder, value, packed=False):
    """A configuration of the sample in `folder` whose band m575 has a hole; and the image's file."""
    path = folder / "images" / f"{BAND}.fits.fz"
    image, header = fits.getdata(path, header=True)
    image[Y0 : Y0 + SIDE, X0 : X0 + SIDE] = value
    if packed:
        with fits.open(path, mode="update") as hdus:
            hdus[1].data[...] = image
    else:
        fits.writeto(path.with_suffix(""), image, header)
        listed = (folder / "images.txt").read_text()
        (folder / "images.txt").write_text(listed.replace(path.name, path.with_suffix("").name))
    return load_config(folder / "config.yaml")


@pytest.fixture(scope="module")
def made(fresh_sample, sample_run):
    """Tiles with a hole, the payloads of the patches in its middle, and their fits."""
    stored, found = load_config(sample_run / "config.yaml"), {}
    for name, value, packed in (
        ("nan", np.nan, False),
        ("zero", 0, False),
        ("7.5", 7.5, False),
        ("dither", 0, True),
    ):
        cfg = with_hole(fresh_sample(f"hole_{name.replace('.', '_')}"), value, packed)
        tile = load_inputs(cfg)
        middle = X0 + SIDE // 2 - tile.bands[0].crop.x0
        patches = build_patches(tile, cfg)
        near = [
            p for p in patches if abs(p.base.centre[0] - middle) < 80 and abs(p.base.centre[1] - middle) < 80
        ]
        payloads = list(build_patch_inputs(tile, near, cfg))
        found[name] = SimpleNamespace(cfg=cfg, tile=tile, payloads=payloads, patches=patches)
    for name in ("nan", "zero"):
        layout = Layout.of(stored.outputs)
        found[name].fits = [
            fit_patch(p, load_psfs(p, layout, stored), stored).sources for p in found[name].payloads
        ]
    return found


@pytest.mark.parametrize("name", ["zero", "7.5", "dither"])
def test_it_is_as_absent_as_nan(made, name):
    assert made[name].tile.no_data == made["nan"].tile.no_data
    for ours, expected in zip(made[name].payloads, made["nan"].payloads):
        for cut, other in zip(ours.bands, expected.bands):
            assert np.array_equal(cut.mask, other.mask)
            if name != "dither":  # which has other pixels, and with them another sky
                assert np.array_equal(cut.image, other.image)


def test_sources_in_it_have_no_flux_and_say_why(made):
    inside = 0
    for ours, expected in zip(made["zero"].fits, made["nan"].fits):
        crop = made["zero"].tile.bands[0].crop
        x, y = ours.x_pix_white_fit + crop.x0 - X0, ours.y_pix_white_fit + crop.y0 - Y0
        deep = np.minimum.reduce([x, SIDE - x, y, SIDE - y]) > 30
        inside += deep.sum()
        assert (
            ours[f"FLUX_{BAND}_fit"][deep].isna().all() and np.isinf(ours[f"FLUXERR_{BAND}_fit"][deep]).all()
        )
        assert (ours.fit_flags[deep].astype(int) & int(FitFlag.NO_DATA_IN_BAND)).all()
        for band in made["zero"].tile.band_names:
            assert np.allclose(
                ours[f"FLUX_{band}_fit"], expected[f"FLUX_{band}_fit"], rtol=1e-6, equal_nan=True
            )
    assert inside >= 15


def test_it_is_told(made):
    """In what `check` prints and on the tile's card: the band, and how much of the frame."""
    ours = made["zero"]
    lines = report(ours.tile, ours.patches, ours.cfg, {band: StarsSeen(3.0) for band in ours.tile.band_names})
    share = SIDE**2 / np.prod(ours.tile.shape)
    assert ours.tile.no_data[ours.tile.band_names.index(BAND)] == pytest.approx(share, abs=0.003)
    assert any("no data" in line and f"{BAND} {100 * share:.0f}"[:-1] in line for line in lines)
    assert "no data" in ours.tile._repr_html_()
