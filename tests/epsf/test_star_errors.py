"""How wrong a PSF is for single stars, and where it steps: simulated bands whose truth is known."""

import galsim
import numpy as np
import pytest
from epsf_scene import FRAME, START, isolated_stars, mixed_snr, moved_to, together

from tract7dt.epsf.band_fit import fit_band

pytestmark = pytest.mark.xdist_group("epsf")
LIGHT = galsim.Moffat(beta=3.0, fwhm=3.0)
COUNT = 60


def field(width_of, seed: int = 1):
    "Sixty stars of S/N 25 to 500; `width_of` tells ln of the width of one at x, y, over that of the mean."
    rng = np.random.default_rng(seed)
    column, row = rng.integers(30, FRAME[1] - 30, (2, COUNT))
    parts = []
    for k, snr in enumerate(mixed_snr(COUNT, rng)):
        profile = galsim.Convolve(LIGHT.dilate(np.exp(width_of(column[k], row[k], rng))), galsim.Pixel(1.0))
        star = isolated_stars(profile, [snr], [seed, k])
        parts.append(moved_to(star, column[k : k + 1], row[k : k + 1]))
    return together(parts)


def in_area(x, y):
    return 550 < x and 300 < y < 750


@pytest.fixture(scope="module")
def bands():
    "PSFs of bands without scatter, with a scatter of 4 % in the width, and with a step of 15 %."
    return {
        "even": fit_band("m500", FRAME, 2, field(lambda x, y, rng: 0.0), START).psf,
        "scattered": fit_band("m500", FRAME, 2, field(lambda x, y, rng: 0.04 * rng.normal()), START).psf,
        "stepped": fit_band("m500", FRAME, 2, field(lambda x, y, rng: 0.15 * in_area(x, y)), START).psf,
    }


def test_scatter_of_single_stars(bands):
    """The polynomial takes a tenth of the scatter. A profile that is off by 2 to 3 % of the light for all
    stars alike is within what the fit of the PSF allows for; shapes of single stars are no part of it.
    """
    widths = {name: np.sqrt(psf.shape_scatter[0, 0]) for name, psf in bands.items()}
    assert widths["even"] < 0.008 and bands["even"].profile_error < 0.04
    assert 0.025 < widths["scattered"] < 0.052
    assert bands["scattered"].profile_error < 0.045


def test_a_step_is_followed(bands):
    """Sixty stars, a fifth of them in the area: the width in its middle is that of the stars there, and away
    from it that of all others; what is not known of it is told."""
    psf = bands["stepped"]
    assert psf.fwhm(770, 520) / psf.fwhm(200, 520) == pytest.approx(np.exp(0.15), rel=0.04)
    assert psf.shape_scatter[0, 0] < 0.04**2
    assert 0.01 < psf.eps_pred(200, 520) < psf.eps_pred(770, 520) < 0.05
    for name in ("even", "scattered"):
        assert not bands[name].followed.any() and not len(bands[name].steps) and not bands[name].warnings
