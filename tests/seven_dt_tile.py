"""A tile as the telescope's own pipeline writes it: coadds of shifted exposures, resampled with LANCZOS3, in
microjansky, with inverse-variance weights and planes of counts.

GalSim draws the exposures at the shifted places; noise, saturation and bad pixels belong to the exposures, so
that the coadd has what real ones have: correlated noise, cores that rise above any level, places that hold
nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import galsim
import numpy as np
import pandas as pd
import yaml
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import binary_dilation, correlate1d

SHAPE = (760, 960)  # rows, columns
SCALE = 0.505  # arcsec per pixel
EXPOSURES = 4  # of each band
GAIN = 900.0  # electrons per microjansky of one exposure
FULL_WELL = 60.0  # microjansky per pixel at which an exposure is saturated
PLANES = ("NGEOM", "NUSED", "NBAD", "NSAT", "NTRAIL", "NOUTLIER")
EMPTY = (slice(0, 60), slice(0, 90))  # rows and columns that no exposure covers


@dataclass(frozen=True)
class Filter:
    "One band: name, FWHM of its exposures in pixels, noise of a pixel of one exposure in microjansky."

    name: str
    fwhm: float
    noise: float


FILTERS = (
    Filter("m450", 2.9, 0.10),
    Filter("m550", 3.1, 0.12),
    Filter("m650", 3.3, 0.09),
    Filter("m750", 3.0, 0.14),
)


def grid() -> WCS:
    "A plain TAN grid."
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.1, 2.2]
    wcs.wcs.crpix = [SHAPE[1] / 2 + 0.5, SHAPE[0] / 2 + 0.5]
    wcs.wcs.cd = np.array([[-SCALE, 0], [0, SCALE]]) / 3600
    return wcs


def sources(rng) -> pd.DataFrame:
    "Stars on a jittered lattice, every eighth a galaxy; fluxes in microjansky, S/N from 5 to some thousands."
    y, x = np.mgrid[30 : SHAPE[0] - 20 : 40, 30 : SHAPE[1] - 20 : 40].reshape(2, -1)
    table = pd.DataFrame({"x": x + rng.uniform(-4, 4, x.size), "y": y + rng.uniform(-4, 4, x.size)})
    table = table[(table.x > 110) | (table.y > 80)].reset_index(drop=True)
    table["ID"] = [f"S{k:04d}" for k in range(len(table))]
    table["flux"] = 10 ** rng.uniform(0.5, 3.2, len(table))
    table["TYPE"] = np.where(np.arange(len(table)) % 8 == 3, "EXP", "STAR")
    galaxy = table.TYPE == "EXP"
    table["Re"] = np.where(galaxy, rng.uniform(2, 5, len(table)), np.nan)
    table["ELL"] = np.where(galaxy, rng.uniform(0, 0.5, len(table)), np.nan)
    table["THETA"] = np.where(galaxy, rng.uniform(0, 180, len(table)), np.nan)
    return table


def light(row, psf):
    "The profile of a source under a PSF."
    if row["TYPE"] == "STAR":
        return psf
    ab = 1 - row["ELL"]
    galaxy = galsim.Exponential(half_light_radius=row["Re"] * np.sqrt(ab))
    return galsim.Convolve(galaxy.shear(q=ab, beta=row["THETA"] * galsim.degrees), psf)


def exposure(table: pd.DataFrame, band: Filter, shift, rng) -> np.ndarray:
    "One exposure whose pixels lie `shift` (x, y) beside those of the coadd."
    image = galsim.ImageD(SHAPE[1], SHAPE[0], xmin=0, ymin=0)
    psf = galsim.Moffat(beta=3.2, fwhm=band.fwhm).shear(e1=0.02, e2=-0.01)
    for row in table.to_dict("records"):
        place = galsim.PositionD(row["x"] - shift[0], row["y"] - shift[1])
        half = 45 if row["flux"] < 100 else 90
        stamp = galsim.ImageD(
            galsim.BoundsI(
                round(place.x) - half, round(place.x) + half, round(place.y) - half, round(place.y) + half
            )
        )
        light(row, psf).withFlux(row["flux"]).drawImage(stamp, scale=1.0, center=place)
        inside = stamp.bounds & image.bounds
        image[inside] += stamp[inside]
    model = image.array
    return model + rng.normal(size=SHAPE) * np.sqrt(band.noise**2 + np.maximum(model, 0) / GAIN)


def lanczos3(image: np.ndarray, shift) -> np.ndarray:
    "The exposure on the grid of the coadd."
    for axis, d in ((1, shift[0]), (0, shift[1])):
        k = np.arange(-3, 4) + d
        kernel = np.where(np.abs(k) < 3, np.sinc(k) * np.sinc(k / 3), 0)
        image = correlate1d(image, kernel / kernel.sum(), axis=axis, mode="nearest")
    return image


def coadd(table: pd.DataFrame, band: Filter, rng) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    "Mean of the resampled exposures, microjansky, and the planes of counts."
    total, planes = np.zeros(SHAPE), {name: np.zeros(SHAPE, np.uint8) for name in PLANES}
    for _ in range(EXPOSURES):
        shift = rng.uniform(-0.5, 0.5, 2)
        raw = exposure(table, band, shift, rng)
        full = raw > FULL_WELL
        total += lanczos3(np.minimum(raw, FULL_WELL), shift)
        planes["NSAT"] += binary_dilation(full, iterations=3).astype(np.uint8)
        planes["NGEOM"] += np.uint8(1)
        planes["NUSED"] += np.uint8(1)
    image = total / EXPOSURES
    image[EMPTY] = 0
    for name in ("NGEOM", "NUSED"):
        planes[name][EMPTY] = 0
    return image, planes


def header(band: Filter, sanity: bool) -> fits.Header:
    "The cards of a coadd."
    cards = grid().to_header()
    pixel = band.noise / np.sqrt(EXPOSURES)
    cards.update(
        OBJECT="T08147",
        FILTER=band.name,
        TELESCOP="7DT",
        EXPTIME=100.0 * EXPOSURES,
        SEEING=band.fwhm * SCALE * 1.05,
        PEEING=band.fwhm * 1.05,
        SKYVAL=0.0,
        SKYSIG=0.8 * pixel,
        SATURATE=FULL_WELL,
        ZP_AUTO=23.9,
        EZP_AUTO=0.01,
        EGAIN=GAIN * EXPOSURES,
        NUNITS=1,
        SANITY=sanity,
    )
    return cards


def name_of(band: Filter) -> str:
    "The file name of a coadd without what follows its stem."
    return f"T08147_{band.name}_7DT02_20251126_043413_100s_coadd"


def write_tile(folder: Path, seed: int = 7) -> pd.DataFrame:
    "Images, weights, counts, catalog and a configuration that names the preset; the truth comes back."
    rng = np.random.default_rng(seed)
    table, wcs = sources(rng), grid()
    for band in FILTERS:
        image, planes = coadd(table, band, rng)
        weight = np.full(SHAPE, EXPOSURES / band.noise**2, np.float32)
        weight[EMPTY] = 0
        stem = folder / name_of(band)
        fits.writeto(f"{stem}.fits", image.astype(np.float32), header(band, True))
        fits.writeto(f"{stem}_weight.fits", weight, wcs.to_header())
        hdus = [fits.CompImageHDU(plane, name=name) for name, plane in planes.items()]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(f"{stem}_counts.fits")
    write_tables(folder, table, rng)
    return table


def write_tables(folder: Path, table: pd.DataFrame, rng) -> None:
    "Catalog, image list and configuration."
    ra, dec = grid().all_pix2world(table.x + rng.normal(0, 0.1, len(table)), table.y, 0)
    given = table.assign(RA=ra, DEC=dec)[["ID", "RA", "DEC", "TYPE", "Re", "ELL", "THETA"]]
    given.to_csv(folder / "catalog.csv", index=False)
    (folder / "images.txt").write_text("".join(f"{name_of(band)}.fits\n" for band in FILTERS))
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration()))


def write_headers_only(folder: Path) -> None:
    "A tile of noise whose coadds the pipeline rejected."
    rng = np.random.default_rng(1)
    for band in FILTERS:
        stem, noise = folder / name_of(band), rng.normal(size=SHAPE).astype(np.float32)
        fits.writeto(f"{stem}.fits", noise, header(band, False))
        fits.writeto(f"{stem}_weight.fits", np.ones(SHAPE, np.float32), grid().to_header())
        counts = fits.CompImageHDU(np.ones(SHAPE, np.uint8), name="NUSED")
        fits.HDUList([fits.PrimaryHDU(), counts]).writeto(f"{stem}_counts.fits")
    write_tables(folder, sources(rng), rng)


def configuration() -> dict:
    "A small frame needs small cells and no crop; all that concerns the images is the preset."
    return {
        "inputs": {
            "tile_name": "T08147",
            "input_catalog": "catalog.csv",
            "image_list_file": "images.txt",
            "gaiaxp_synphot_csv": None,
            "preset": "7dt",
        },
        "outputs": {"work_dir": "work"},
        "crop": {"enabled": False},
        "overlay": {"enabled": False},
        "epsf": {"epsf_ngrid": 1, "ngrid": 4},
        "patch_run": {"no_cutouts": True, "no_patch_overview": True},
        "zp": {"enabled": False},
    }
