"""Isolated simulated stars with a known PSF, for the tests of the ePSF."""

import galsim
import numpy as np

from tract7dt.epsf.bandfit import BandStars
from tract7dt.epsf.starfit import Neighbours, StarStamps

SKY, GAIN, FRAME = 5.0, 2.0, (1000, 1000)
START = np.array([np.log(3.2), 0.0, 0.0, 0.9, 0.04])


def aberrated(fwhm=3.0):
    "A PSF with coma, trefoil and a 4 % aureole, pixel response included."
    optics = galsim.OpticalPSF(lam_over_diam=0.3 * fwhm, coma1=0.07, trefoil2=0.06, astig1=0.01, obscuration=0.3)
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
    stamps = StarStamps(data.astype(np.float32), np.ones(data.shape, bool), column, row, column.astype(float), row.astype(float),
                        np.full(count, SKY), np.arange(count), GAIN)
    nobody = Neighbours(*(np.zeros((count, 0)) for _ in range(3)), np.zeros((count, 0), bool))
    return BandStars(stamps, nobody, 0.9 * flux, snr)


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
