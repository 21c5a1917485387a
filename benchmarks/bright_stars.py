"""Bright isolated stars against apertures: python benchmarks/bright_stars.py CONFIG [--refit]

What a fit says of a star must be what an aperture says, within the error. Stars are chosen by `choose`; their
aperture is that of the image of a patch without the fitted light of all others. The mean aperture correction
of a band is free: what counts is the scatter from star to star. With `--refit` the patches of these stars are
fitted again from their payloads by the program as it is now, without it the stored fits are read. With
`--hand` the bands get errors of their PSFs from a table instead of those that were measured.

Columns: `stars`; `scatter` of flux over aperture; `apertures`, that of two apertures among themselves;
`error`, the median FLUXERR over flux; `ratio`, scatter over error; `pull`, the width of the differences each
over its own error; `both`, scatter over FLUXERR and the noise of the aperture; `chi2`, the median chi2/npix;
`noise`, that of the aperture, over its flux.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import one_thread  # noqa: F401  before NumPy
import pandas as pd
import yaml
from photutils.aperture import CircularAperture

from tract7dt.config.load import load_config
from tract7dt.core.statistics import SIGMA_OF_MAD
from tract7dt.fit.model import Scene, draw
from tract7dt.fit.problem import PSFError
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.payload import read_payload
from tract7dt.patches.problem import load_psfs
from tract7dt.patches.stored import fitted_parameters, read_fit
from tract7dt.workdir.layout import Layout

SIGNIFICANT = 150  # flux over its conditional error in a band, at least
NEIGHBOUR = 14.0  # pixels within which there is nobody else ...
FAINT = 0.03  # ... brighter than this share of the star
RADIUS, TWO = 7.0, (5.0, 9.0)  # of apertures, pixels
HAND = {  # band: profile error, scatter of ln FWHM, of positions, by hand on the nine-band field
    "u": (0.03, 0.02, 0.12),
    "g": (0.02, 0.015, 0.12),
    "r": (0.025, 0.02, 0.12),
    "i": (0.05, 0.026, 0.1),
    "Z": (0.06, 0.08, 0.08),
    "Y": (0.025, 0.015, 0.06),
    "J": (0.03, 0.015, 0.08),
    "H": (0.03, 0.015, 0.06),
    "Ks": (0.03, 0.02, 0.06),
}
SHAPE = 0.01  # scatter of each ellipticity, by hand


def width(values) -> float:
    "Robust standard deviation."
    values = np.asarray(values, float)
    return SIGMA_OF_MAD * float(np.median(np.abs(values - np.median(values)))) if len(values) else np.nan


def choose(table: pd.DataFrame, bands: list[str]) -> pd.DataFrame:
    "Point sources with high signal and no neighbour of weight, of a final catalog."
    x, y = (table[f"{axis}_pix_white_fit"].to_numpy(float) for axis in "xy")
    flux = table[[f"FLUX_{b}_fit" for b in bands]].to_numpy(float)
    error = table[[f"FLUXERR_COND_{b}_fit" for b in bands]].to_numpy(float)
    good = (flux / error > SIGNIFICANT) & np.isfinite(error)
    near = np.hypot(x[:, None] - x, y[:, None] - y) < NEIGHBOUR
    np.fill_diagonal(near, False)
    for b in range(len(bands)):
        good[:, b] &= ~(near & (flux[None, :, b] > FAINT * flux[:, None, b])).any(axis=1)
        good[:, b] &= ~table[f"saturated_{bands[b]}"].fillna(False).to_numpy(bool)
    chosen = table["TYPE"].eq("STAR").to_numpy() & (good.sum(axis=1) >= 3)
    marks = pd.DataFrame(good[chosen], columns=[f"use_{b}" for b in bands])
    return pd.concat([table.loc[chosen, ["ID", "patch_tag"]].reset_index(drop=True), marks], axis=1)


def slopes_by_hand(stamp: np.ndarray) -> np.ndarray:
    "Change of a stamp per unit of ln FWHM, e1 and e2, by stretching it about its middle, [3, n, n]."
    half = len(stamp) // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    by_y, by_x = np.gradient(stamp)
    wider = -2 * stamp - x * by_x - y * by_y
    return np.stack(
        [wider - wider.sum() * stamp / stamp.sum(), (y * by_y - x * by_x) / 2, -(x * by_y + y * by_x) / 2]
    )


def by_hand(psfs: dict) -> dict:
    "The PSFs of a patch with the errors of the table."
    out = {}
    for name, psf in psfs.items():
        profile, size, position = HAND.get(name, (0.0, 0.0, 0.0))
        error = PSFError(profile, np.diag([size, SHAPE, SHAPE]) ** 2, slopes_by_hand(psf.stamp), position)
        out[name] = replace(psf, error=error)
    return out


def apertures(fit, rows: np.ndarray) -> dict[str, np.ndarray]:
    "Sums in apertures of each radius around the sources in `rows` without the light of others, [rows, B]."
    bands, x, y = [cut.name for cut in fit.payload.bands], *fit.place()
    flux = fit.sources[[f"FLUX_{b}_fit" for b in bands]].to_numpy(float)
    own = np.zeros((len(fit.sources), len(bands)), np.float32)
    own[rows] = np.nan_to_num(flux[rows])
    fitted = fitted_parameters(fit.sources, fit.problem.sources.kind, bands[0], "patch")
    plain = replace(fit.problem.sources, flux_prior_mean=None, flux_prior_sigma=None)
    light = np.zeros_like(fit.model)
    draw(Scene.fitted(replace(fit.problem, sources=plain), fitted, own), light)
    names = {f"ap{radius:g}": radius for radius in (RADIUS, *TWO)}
    out = {name: np.full((len(rows), len(bands)), np.nan) for name in names}
    out["noise"] = out["ap7"].copy()
    for b, band in enumerate(fit.problem.bands):
        image, bad = band.image - fit.model[b] + light[b], band.invvar <= 0
        for k, s in enumerate(rows):
            for name, radius in names.items():
                mask = CircularAperture((x[s], y[s]), radius).to_mask(method="exact")
                if (mask.cutout(bad.astype(float), fill_value=1.0) * mask.data > 0).any():
                    continue
                out[name][k, b] = (mask.cutout(image) * mask.data).sum()
                if radius == RADIUS:
                    factor = 1.0 if band.noise is None else float(band.noise.at(mask.data.sum()))
                    out["noise"][k, b] = factor * np.sqrt((mask.data / mask.cutout(band.invvar)).sum())
    return out


def measured(stars: pd.DataFrame, layout: Layout, config, refit: bool, hand: bool) -> pd.DataFrame:
    "A row for each star and band."
    out = []
    for tag, group in stars.groupby("patch_tag"):
        payload = read_payload(layout.payload(tag))
        psfs = load_psfs(payload, layout, config)
        if refit:
            fit = fit_patch(payload, by_hand(psfs) if hand else psfs, config)
        else:
            fit = read_fit(payload, psfs, layout, config)
            if fit is None:
                raise SystemExit(f"{tag}: not fitted with this configuration and this program; use --refit")
        place = {name: k for k, name in enumerate(fit.sources["ID"].astype(str))}
        rows = np.array([place[name] for name in group["ID"].astype(str)])
        sums = apertures(fit, rows)
        for b, cut in enumerate(fit.payload.bands):
            part = fit.sources.iloc[rows]
            table = dict(
                ID=group["ID"].to_numpy(),
                band=cut.name,
                use=group[f"use_{cut.name}"].to_numpy(),
                flux=part[f"FLUX_{cut.name}_fit"].to_numpy(float),
                error=part[f"FLUXERR_{cut.name}_fit"].to_numpy(float),
                chi2=part[f"chi2_{cut.name}_fit"].to_numpy(float)
                / part[f"npix_{cut.name}_fit"].to_numpy(float),
            )
            out.append(pd.DataFrame(table | {name: values[:, b] for name, values in sums.items()}))
    return pd.concat(out, ignore_index=True)


def table_of(rows: pd.DataFrame) -> pd.DataFrame:
    "Numbers of each band."
    out = {}
    for name, band in rows[rows["use"] & np.isfinite(rows["ap9"])].groupby("band", sort=False):
        off = np.log(band["flux"] / band["ap7"])
        error = band["error"] / band["flux"]
        scatter = width(off)
        out[name] = dict(
            stars=len(band),
            scatter=scatter,
            apertures=width(np.log(band["ap5"] / band["ap9"])),
            error=error.median(),
            ratio=scatter / error.median(),
            pull=width((off - off.median()) / error),
            both=scatter / np.hypot(error, band["noise"] / band["ap7"]).median(),
            chi2=band["chi2"].median(),
            noise=(band["noise"] / band["ap7"]).median(),
        )
    return pd.DataFrame(out).T


def run(asked) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Rows of stars and bands, and the table of bands."
    changes = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in asked.set)}
    config = load_config(str(asked.config), changes)
    layout = Layout.of(config.outputs)
    table = pd.read_csv(layout.final_catalog, dtype={"ID": str})
    bands = [name[5:-4] for name in table if name.startswith("FLUX_") and name.endswith("_fit")]
    rows = measured(choose(table, bands), layout, config, asked.refit, asked.hand)
    return rows, table_of(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="configuration of a finished run")
    parser.add_argument("--refit", action="store_true", help="fit the patches of the stars again")
    parser.add_argument("--hand", action="store_true", help="errors of PSFs from the table, with --refit")
    parser.add_argument("--set", nargs="*", default=[], help="keys of the configuration, key=value")
    parser.add_argument("--rows", type=Path, help="write the rows of all stars and bands into this CSV file")
    asked = parser.parse_args()
    rows, table = run(asked)
    if asked.rows:
        rows.to_csv(asked.rows, index=False)
    print(table.round(4).to_string())
