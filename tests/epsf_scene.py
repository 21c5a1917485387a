"""Isolated simulated stars with a known PSF, for the tests of the ePSF."""

from dataclasses import replace

import galsim
import numpy as np

from tract7dt.epsf.band_fit import BandStars
from tract7dt.epsf.neighbours import Neighbours
from tract7dt.epsf.star_fit import StarStamps

SKY, GAIN, FRAME = 5.0, 2.0, (1000, 1000)
START = np.array([np.log(3.2), 0.0, 0.0, 0.9, 0.04])


def aberrated(fwhm=3.0):
    "A PSF with coma, trefoil and a 4 % aureole, pixel response included."
    optics = galsim.OpticalPSF(
        lam_over_diam=0.3 * fwhm, coma1=0.07, trefoil2=0.06, astig1=0.01, obscuration=0.3
    )
    seeing = galsim.Convolve(galsim.Moffat(beta=3.5, fwhm=0.8 * fwhm), optics)
    return galsim.Convolve(0.96 * seeing + 0.04 * galsim.Moffat(beta=2.2, fwhm=3 * fwhm), galsim.Pixel(1.0))


def image(psf, dx=0.0, dy=0.0, size=55, scale=1.0):
    "The PSF sampled at pixel centres, off the middle by dx, dy pixels."
    return psf.shift(dx, dy).drawImage(nx=size, ny=size, scale=scale, method="no_pixel").array.astype(float)


def mixed_snr(count, rng):
    "Signal to noise from 25 to 500."
    return 10 ** rng.uniform(np.log10(25), np.log10(500), count)


def isolated_stars(psf, snr, seed, frame=FRAME) -> BandStars:
    "Stars of given S/N on stamps of 61 pixels, anywhere in the frame."
    rng = np.random.default_rng(seed)
    snr = np.asarray(snr, float)
    flux = snr * SKY / np.sqrt((image(psf) ** 2).sum())
    place = rng.uniform(-0.5, 0.5, (len(snr), 2))
    clean = np.array([f * image(psf, *p, size=61) for f, p in zip(flux, place)])
    data = clean + rng.normal(size=clean.shape) * np.sqrt(SKY**2 + np.maximum(clean, 0) / GAIN)
    column, row = rng.integers(30, frame[1] - 30, len(snr)), rng.integers(30, frame[0] - 30, len(snr))
    count = len(snr)
    stamps = StarStamps(
        data.astype(np.float32),
        np.ones(data.shape, bool),
        column,
        row,
        column.astype(float),
        row.astype(float),
        np.full(count, SKY),
        np.arange(count),
        GAIN,
    )
    nobody = Neighbours.nobody(count)
    return BandStars(stamps, nobody, 0.9 * flux, snr)


def moved_to(stars: BandStars, column, row) -> BandStars:
    "The same stars at other pixels of the frame."
    return replace(
        stars,
        stamps=replace(stars.stamps, column=column, row=row, x=column.astype(float), y=row.astype(float)),
    )


def together(parts) -> BandStars:
    "Stars of several lists, none with neighbours."
    stamps = [part.stamps for part in parts]
    names = ("data", "good", "column", "row", "x", "y", "sky_sigma", "source")
    joined = replace(
        stamps[0], **{name: np.concatenate([getattr(s, name) for s in stamps]) for name in names}
    )
    nobody = Neighbours.nobody(len(joined))
    return BandStars(
        joined, nobody, *(np.concatenate([getattr(part, name) for part in parts]) for name in ("flux", "snr"))
    )


def checkerboard(snr, seed, others: int = 50):
    """Stars in 4 x 4 cells whose FWHM is 3 % above and below 3 pixels in turn.

    The wide cell (1, 1) has stars of the given S/N; as many as `others` of mixed S/N lie in the rest of each
    colour.
    Returns the stars and the middle of that cell.
    """
    rng, step = np.random.default_rng(seed), FRAME[0] // 4
    cells = np.array([(c, r) for r in range(4) for c in range(4) if (c, r) != (1, 1)])

    def scattered(stars, homes):
        column, row = (
            homes[rng.integers(0, len(homes), len(stars))] * step
            + rng.integers(30, step - 30, (len(stars), 2))
        ).T
        return moved_to(stars, column, row)

    wide, narrow = cells[cells.sum(axis=1) % 2 == 0], cells[cells.sum(axis=1) % 2 == 1]
    return together(
        [
            scattered(isolated_stars(aberrated(3.09), snr, [seed, 1]), np.array([[1, 1]])),
            scattered(isolated_stars(aberrated(3.09), mixed_snr(others, rng), [seed, 2]), wide),
            scattered(isolated_stars(aberrated(2.91), mixed_snr(others, rng), [seed, 3]), narrow),
        ]
    ), (1.5 * step, 1.5 * step)


def aligned_truth(stamp, psf):
    "The true stamp of unit sum, moved onto `stamp`."
    gy, gx = np.gradient(stamp)
    dx = dy = 0.0
    for _ in range(5):
        truth = image(psf, dx, dy)
        difference = stamp - truth / truth.sum()
        dx -= (difference * gx).sum() / (gx**2).sum()
        dy -= (difference * gy).sum() / (gy**2).sum()
    truth = image(psf, dx, dy)
    return truth / truth.sum()


def flux_error(stamp, truth) -> float:
    "Relative error of a star's flux when `stamp` is fitted to `truth`."
    return float((stamp * truth).sum() / (stamp**2).sum() - 1)
