"""A large tile made of copies of the sample: python benchmarks/big_tile.py FOLDER --width 2000 --height 2000
--bands 12

Pixels, catalog and Gaia table are repeated side by side, and the six bands under other names. For measuring
time and
memory, not truth: light is cut off where two copies meet, and the PSF jumps there.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from astropy.io import fits
from astropy.wcs import WCS

from tract7dt.core.geometry import to_pixels, to_sky

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data"
CELL_PIX, PATCH_PIX = 430, 140
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class BigTile:
    "Size of the frame, number of bands, and the part of the catalog's rows that is kept."

    width: int
    height: int
    bands: int
    keep: float = 1.0

    def names(self) -> list[str]:
        "Names of medium bands."
        return [f"m{400 + 25 * k}" for k in range(self.bands)]


def offsets(tile: BigTile, shape) -> list[tuple[int, int]]:
    "Corners (x, y) of the copies."
    return list(product(range(0, tile.width, shape[1]), range(0, tile.height, shape[0])))


def repeated_rows(table: pd.DataFrame, wcs: WCS, columns, tile: BigTile, shape) -> pd.DataFrame:
    """A table's rows at every copy's place; those off the frame or without a place are left out.

    `columns`: RA, Dec, identifier.
    """
    ra, dec, identifier = columns
    x, y = to_pixels(wcs, table[ra].astype(float), table[dec].astype(float))
    inside = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    copies = []
    for number, (dx, dy) in enumerate(offsets(tile, shape)):
        rows = table[inside].copy()
        rows[ra], rows[dec] = to_sky(wcs, x[inside] + dx, y[inside] + dy)
        rows[identifier] = [f"{number + 1}{name}" for name in rows[identifier]]
        copies.append(rows[(x[inside] + dx < tile.width) & (y[inside] + dy < tile.height)])
    return pd.concat(copies, ignore_index=True)


def write_band(source: Path, path: Path, name: str, tile: BigTile) -> None:
    "One image of copies of `source`, written a few rows at a time."
    with fits.open(source) as hdus:
        pixels, header = hdus[1].data.astype(">f4"), hdus[1].header.copy()
    header.update({"FILTER": name, "NAXIS1": tile.width, "NAXIS2": tile.height})
    plain = fits.Header(
        [
            ("SIMPLE", True),
            *(
                (c.keyword, c.value, c.comment)
                for c in header.cards
                if c.keyword not in ("XTENSION", "PCOUNT", "GCOUNT")
            ),
        ]
    )
    across = np.tile(pixels, (1, -(-tile.width // pixels.shape[1])))[:, : tile.width]
    stream = fits.StreamingHDU(path, plain)
    for y in range(0, tile.height, ROWS_AT_ONCE):
        stream.write(across[np.arange(y, min(y + ROWS_AT_ONCE, tile.height)) % len(across)])
    stream.close()


def write_tables(folder: Path, tile: BigTile, wcs: WCS, shape) -> None:
    "The catalog and the Gaia table, all as text."
    read = {"dtype": str, "keep_default_na": False}
    catalog = pd.read_csv(SAMPLE / "catalog.csv", **read)
    catalog = catalog[pd.to_numeric(catalog["RA"], errors="coerce").notna()]
    rows = repeated_rows(catalog.drop_duplicates("ID"), wcs, ("RA", "DEC", "ID"), tile, shape)
    rows = rows.drop(columns=[c for c in rows if c.startswith("FLUX_")])
    rows[np.arange(len(rows)) * tile.keep % 1 < tile.keep].to_csv(folder / "catalog.csv", index=False)
    gaia = pd.read_csv(SAMPLE / "gaia_xp.csv", **read)
    given = [c for c in gaia if c.startswith("mag_m")]
    stars = repeated_rows(gaia, wcs, ("ra", "dec", "source_id"), tile, shape)
    magnitudes = {f"mag_{name}": stars[given[k % len(given)]] for k, name in enumerate(tile.names())}
    stars.drop(columns=given).assign(**magnitudes).to_csv(folder / "gaia_xp.csv", index=False)


def write_config(folder: Path, tile: BigTile) -> Path:
    "The sample's configuration with a grid that fits the frame."
    settings = yaml.safe_load((SAMPLE / "config.yaml").read_text())
    settings["epsf"] |= {
        "epsf_ngrid": max(1, round(min(tile.width, tile.height) / CELL_PIX)),
        "ngrid": round(CELL_PIX / PATCH_PIX),
    }
    settings["zp"]["min_box_size_pix"] = max(tile.width, tile.height)
    settings["overlay"]["downsample_full"] = max(1, max(tile.width, tile.height) // 1000)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def make_big_tile(folder: Path, tile: BigTile) -> Path:
    "Write images, tables and configuration; returns the configuration's path."
    (folder / "images").mkdir(parents=True, exist_ok=True)
    sources = sorted((SAMPLE / "images").glob("*.fits.fz"))
    header = fits.getheader(sources[0], 1)
    for k, name in enumerate(tile.names()):
        write_band(sources[k % len(sources)], folder / "images" / f"{name}.fits", name, tile)
    (folder / "images.txt").write_text("".join(f"images/{name}.fits\n" for name in tile.names()))
    write_tables(folder, tile, WCS(header), (header["NAXIS2"], header["NAXIS1"]))
    return write_config(folder, tile)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, default in (("width", 2000), ("height", 2000), ("bands", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=float, default=1.0, help="part of the catalog's rows that is kept")
    asked = parser.parse_args()
    print(make_big_tile(asked.folder, BigTile(asked.width, asked.height, asked.bands, asked.keep)))
