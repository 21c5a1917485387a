"""Small input sets for tests: images, list, catalog, Gaia table, configuration."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits

from tract7dt.config.load import resolve_paths
from tract7dt.config.schema import Config

SCALE = 0.505 / 3600


def header(shape=(120, 160), **cards) -> fits.Header:
    made = fits.Header(
        dict(
            CTYPE1="RA---TAN",
            CTYPE2="DEC--TAN",
            CRVAL1=150.0,
            CRVAL2=2.0,
            CRPIX1=shape[1] / 2,
            CRPIX2=shape[0] / 2,
            CD1_1=-SCALE,
            CD1_2=0.0,
            CD2_1=0.0,
            CD2_2=SCALE,
            FILTER="m400",
            ZP_AUTO=25.0,
            SKYSIG=1.0,
            EGAIN=2.0,
            SATURATE=1300.0,
            PEEING=3.0,
        )
    )
    made.update({k: v for k, v in cards.items() if v is not None})
    for key in (k for k, v in cards.items() if v is None):
        made.remove(key)
    return made


def noise(seed=0, shape=(120, 160)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype("f4")


def sky(x, y, shape=(120, 160)):
    "RA, DEC of pixel positions."
    from astropy.wcs import WCS

    return WCS(header(shape)).all_pix2world(x, y, 0)


@dataclass
class Field:
    "A folder of inputs; change files or sections, then ask for `cfg()`."

    folder: Path
    bands: tuple = ("m400", "m425")
    shape: tuple = (120, 160)
    sections: dict = field(default_factory=dict)

    def __post_init__(self):
        for i, band in enumerate(self.bands):
            self.image(band, noise(i, self.shape))
        self.list(*(f"{b}.fits" for b in self.bands))
        self.catalog("ID,RA,DEC\na,150.0,2.0\n")

    def image(self, name, data, band=None, **cards):
        fits.writeto(
            self.folder / f"{name}.fits",
            data,
            header(self.shape, **dict(FILTER=band or name) | cards),
            overwrite=True,
        )
        return self.folder / f"{name}.fits"

    def list(self, *lines):
        (self.folder / "images.txt").write_text("".join(f"{line}\n" for line in lines))

    def catalog(self, text):
        table = text if isinstance(text, str) else text.to_csv(index=False)
        (self.folder / "cat.csv").write_text(table)

    def gaia(self, text):
        table = text if isinstance(text, str) else text.to_csv(index=False)
        (self.folder / "gaia.csv").write_text(table)
        self.sections["inputs"] = dict(gaiaxp_synphot_csv=str(self.folder / "gaia.csv"))

    def cfg(self, **sections) -> Config:
        "As it is when it has been read from the folder: all paths absolute."
        return resolve_paths(self.as_written(**sections), self.folder)

    def as_written(self, **sections) -> Config:
        "As it stands in a file: paths seen from the folder stay so."
        sections = self.sections | sections
        inputs = dict(
            image_list_file=str(self.folder / "images.txt"),
            input_catalog=str(self.folder / "cat.csv"),
            gaiaxp_synphot_csv=None,
        )
        plain = dict(
            crop=dict(enabled=False), zp=dict(enabled=False), outputs=dict(work_dir=str(self.folder / "work"))
        )
        cfg = Config(**plain | sections | dict(inputs=inputs | sections.get("inputs", {})))
        cfg._source = self.folder / "config.yaml"
        return cfg


def rows_at(positions, shape=(120, 160), **columns) -> pd.DataFrame:
    "A catalog of sources at pixel positions."
    ra, dec = sky(*np.transpose(np.asarray(positions, float)), shape)
    return pd.DataFrame(dict(ID=[f"{i:05d}" for i in range(len(ra))], RA=ra, DEC=dec, **columns))
