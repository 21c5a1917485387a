"""Stars fitted where nothing is: python benchmarks/empty_places.py CONFIG [--places 2000]

Positions are held, so the fluxes are noise alone, and their scatter over FLUXERR must be 1 in every band.
PSFs, sky and noise are those of a run with the configuration; pixels of sources are left out. `factor` is how
much larger a star's error is than that of independent pixels, `width_white` what the scatter were without it.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import one_thread  # noqa: F401  before NumPy
import pandas as pd
import yaml

from tract7dt.config.load import load_config
from tract7dt.core.geometry import Box, to_sky
from tract7dt.core.statistics import SIGMA_OF_MAD
from tract7dt.epsf.build import build_epsf
from tract7dt.fit.engine import fit
from tract7dt.inputs.band import MaskBit
from tract7dt.patches.geometry import build_patches
from tract7dt.patches.payload import build_patch_inputs
from tract7dt.patches.problem import fit_problem, psfs_of
from tract7dt.tile.exclusion import add_state
from tract7dt.tile.load import load_inputs
from tract7dt.tile.noise import factors_of
from tract7dt.tile.sky import source_mask
from tract7dt.tile.tile import Tile

APART = 24  # pixels between two places, at least
EDGE = 30  # pixels from the edge of the frame
CORE = 2  # pixels around a place that must be free of sources


@dataclass(frozen=True)
class Blank:
    "A tile with places on blank sky instead of sources, and the pixels that have sources."

    tile: Tile
    sources: np.ndarray


def empty_places(tile: Tile, sources: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    "Positions (x, y) away from sources and from each other."
    rng = np.random.default_rng(1)
    jitter = rng.uniform(-4, 4, (2, *[len(range(EDGE, n - EDGE, APART + 8)) for n in tile.shape]))
    y, x = np.meshgrid(*(np.arange(EDGE, n - EDGE, APART + 8.0) for n in tile.shape), indexing="ij")
    x, y = (x + jitter[0]).ravel(), (y + jitter[1]).ravel()
    columns, rows = np.rint(x).astype(int), np.rint(y).astype(int)
    steps = range(-CORE, CORE + 1)
    free = np.logical_and.reduce([~sources[rows + dy, columns + dx] for dy in steps for dx in steps])
    chosen = rng.permutation(np.flatnonzero(free))[:wanted]
    return x[chosen], y[chosen]


def with_places(tile: Tile, wanted: int) -> Blank:
    "The tile with places instead of its catalog."
    sources = source_mask(tile)
    x, y = empty_places(tile, sources, wanted)
    ra, dec = to_sky(tile.wcs, x, y)
    table = pd.DataFrame(dict(ID=[f"{i:05d}" for i in range(len(x))], RA=ra, DEC=dec, TYPE="STAR"))
    catalog = add_state(table, x, y, np.zeros(len(x), bool), tile.bands[0])
    return Blank(replace(tile, catalog=catalog), sources)


def without_sources(payload, sources: np.ndarray):
    "The payload with the pixels of sources masked."
    roi = payload.patch.roi
    inside = roi.clip(Box.of_shape(sources.shape))
    masked = np.zeros(roi.shape, bool)
    masked[inside.shift(-roi.x0, -roi.y0).slices] = sources[inside.slices]
    bands = tuple(
        replace(cut, mask=np.where(masked, cut.mask | np.uint8(MaskBit.BRIGHT), cut.mask))
        for cut in payload.bands
    )
    return replace(payload, bands=bands)


def fluxes_of_nothing(config, wanted: int) -> tuple[Tile, pd.DataFrame, pd.DataFrame]:
    "The tile; fluxes at the places and their errors, a column for each band."
    tile = load_inputs(config)
    psfs, blank = build_epsf(tile, config), with_places(tile, wanted)
    flux, error = [], []
    for payload in build_patch_inputs(blank.tile, build_patches(blank.tile, config), config):
        payload = without_sources(payload, blank.sources)
        problem = fit_problem(payload, psfs_of(payload, psfs, config), config)
        held = replace(problem.sources, fix_position=True)
        options = replace(problem.options, ignore_unmodelled=False)
        result = fit(replace(problem, sources=held, options=options))
        flux.append(result.flux)
        error.append(result.flux_err)
    names = list(tile.band_names)
    return (
        tile,
        pd.DataFrame(np.concatenate(flux), columns=names),
        pd.DataFrame(np.concatenate(error), columns=names),
    )


def table_of(tile: Tile, flux: pd.DataFrame, error: pd.DataFrame) -> pd.DataFrame:
    "Median and width of flux over error in each band, with the error of the width, and the measured factor."
    pulls = flux / error
    middle = pulls.median()
    width = SIGMA_OF_MAD * (pulls - middle).abs().median()
    factors = [factors_of(band, band.fwhm_pix or 3.0)[1] for band in tile.bands]
    return pd.DataFrame(
        {
            "places": pulls.notna().sum(),
            "median": middle,
            "width": width,
            "error": 1.17 * width / np.sqrt(2 * pulls.notna().sum()),
            "factor": factors,
            "width_white": width * factors,
        }
    ).round(3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--places", type=int, default=2000)
    parser.add_argument("--set", nargs="*", default=[], help="keys of the configuration, key=value")
    asked = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in asked.set)}
    print(table_of(*fluxes_of_nothing(load_config(str(asked.config), changes), asked.places)).to_string())
