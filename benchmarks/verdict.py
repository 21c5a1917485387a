"""What the verdict is worth: python benchmarks/verdict.py CONFIG [--set SET] [--seed 1] [--every 1]

CONFIG is that of a finished run, whose patches are fitted again from their payloads, changed as SET says:

  as_is        nothing is changed; isolated sources against apertures (7 px or 2 Re, sky of their own)
  typed_star   all galaxies are typed STAR; truth is the flux of `as_is` where that is reliable
  typed_exp    all stars are typed EXP, with radii of 1 to 4 px; truth as before
  shifted      three rows of ten are 1 to 3.5 px off
  missing      one row of five is left out
  injected     seven sources of known flux are put into each patch, and into its list

Bad: off by more than 10 % and 5 errors; right: within 10 % or 3 errors. FT, false trust: bad among reliable.
FA, false alarm: right, but not reliable, among right. `--out FILE` keeps all source-bands as a pickle.

A residual in an aperture is what the rules look at themselves: judged by apertures alone they pass by
construction. Judge by injected sources, and by simulated truth, too.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import one_thread  # noqa: F401  before NumPy
import pandas as pd

from tract7dt.config.load import load_config
from tract7dt.core.statistics import SIGMA_OF_MAD
from tract7dt.fit.flags import BAND_FLAGS, FLAGS, is_reliable
from tract7dt.fit.footprints import Pixels
from tract7dt.fit.model import Scene, draw
from tract7dt.fit.problem import Kind
from tract7dt.fit.shapes import native_from_catalog
from tract7dt.fit.worth import Worth
from tract7dt.patches.fit import PatchFit, fit_patch
from tract7dt.patches.payload import Payload, read_payload
from tract7dt.patches.problem import load_psfs, pixel_psf
from tract7dt.workdir.layout import Layout

OFF, BAD_SIGMA, RIGHT_SIGMA = 0.1, 5.0, 3.0  # what is bad, and what is right
ALONE, APERTURE, GAP, RING = (
    18.0,
    7.0,
    4.0,
    9.0,
)  # pixels: to the next row; aperture; gap and width of the sky
INJECTED = 7  # sources for each patch
CLEAR = 3.0  # pixels from an injected source to the next row, at least


@dataclass(frozen=True)
class Changed:
    "A payload that was changed, whose rows count, and what is known of the injected ones."

    payload: Payload
    counted: np.ndarray
    truth: pd.DataFrame | None = None


def generator(payload: Payload, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, sum(map(ord, payload.patch.tag))])


def as_is(payload, psfs, seed) -> Changed:
    return Changed(payload, payload.is_measured.to_numpy(bool))


def typed_star(payload, psfs, seed) -> Changed:
    rows = payload.sources.copy()
    galaxy = rows["TYPE"].ne("STAR")
    rows.loc[galaxy, "TYPE"] = "STAR"
    return Changed(replace(payload, sources=rows), (payload.is_measured & galaxy).to_numpy(bool))


def typed_exp(payload, psfs, seed) -> Changed:
    rows, star = payload.sources.copy(), payload.sources["TYPE"].eq("STAR")
    shapes = {"Re": generator(payload, seed).uniform(1, 4, len(rows)), "ELL": 0.2, "THETA": 0.0}
    for name, values in shapes.items():
        rows[name] = np.where(star, values, rows.get(name, np.nan))
    rows.loc[star, "TYPE"] = "EXP"
    return Changed(replace(payload, sources=rows), (payload.is_measured & star).to_numpy(bool))


def shifted(payload, psfs, seed) -> Changed:
    rng, rows = generator(payload, seed), payload.sources.copy()
    who, far = rng.random(len(rows)) < 0.3, rng.uniform(1, 3.5, len(rows))
    angle = rng.uniform(0, 2 * np.pi, len(rows))
    for axis, part in (("x", np.cos(angle)), ("y", np.sin(angle))):
        for frame in ("patch", "white"):
            rows[f"{axis}_pix_{frame}"] += np.where(who, far * part, 0)
    return Changed(replace(payload, sources=rows), payload.is_measured.to_numpy(bool))


def missing(payload, psfs, seed) -> Changed:
    kept = generator(payload, seed).random(len(payload.sources)) > 0.2
    short = replace(payload, sources=payload.sources[kept].reset_index(drop=True))
    return Changed(short, short.is_measured.to_numpy(bool))


def injected(payload: Payload, psfs, seed: int) -> Changed:
    "Stars, EXP, DEV and SERSIC at random places, with spectra of the field, rows that are a little off."
    rng, count, bands = generator(payload, seed), INJECTED, [cut.name for cut in payload.bands]
    box, roi = payload.patch.base, payload.patch.roi
    x = rng.uniform(box.x0 + 3, box.x1 - 4, count) - roi.x0
    y = rng.uniform(box.y0 + 3, box.y1 - 4, count) - roi.y0
    kind = rng.choice([Kind.STAR, Kind.STAR, Kind.EXP, Kind.EXP, Kind.SERSIC, Kind.DEV], count)
    re, ab, theta = (
        np.exp(rng.uniform(0.4, 2.2, count)),
        rng.uniform(0.4, 1, count),
        rng.uniform(-90, 90, count),
    )
    n = np.select([kind == Kind.DEV, kind == Kind.SERSIC], [4, rng.uniform(1, 3.5, count)], 1)
    noise = np.array([np.median(np.broadcast_to(cut.sky_sigma, cut.image.shape)) for cut in payload.bands])
    ratio = 10 ** rng.uniform(1, 2.7, (count, 1)) * np.exp(rng.normal(0, 0.3, (count, len(bands))))
    flux = ratio * noise * 4 * (1 + np.where(kind == Kind.STAR, 0, re))[:, None]  # about this S/N
    native = np.column_stack([x, y, *native_from_catalog(re, ab, theta), n])
    nothing = np.zeros((1, 0, 0), np.float32)
    pixels = Pixels(nothing, nothing, tuple(pixel_psf(psfs[b], payload.patch) for b in bands), {})
    light = np.zeros((len(bands), *payload.bands[0].image.shape), np.float32)
    draw(Scene.wide(kind, native, flux.astype(np.float32), native[:, :2], pixels), light)
    cuts = tuple(
        replace(
            cut, image=cut.image + own + rng.normal(size=own.shape) * np.sqrt(np.maximum(own, 0) / cut.gain)
        )
        for cut, own in zip(payload.bands, light)
    )
    known = payload.sources[["x_pix_patch", "y_pix_patch"]].to_numpy(float)
    apart = [np.hypot(*(known - place).T).min() for place in native[:, :2]]
    rows = payload.sources.iloc[[0] * count].reset_index(drop=True)
    rows = rows.assign(**{name: False for name in rows if rows[name].dtype == bool})
    rows = rows.assign(
        ID=[f"injected_{payload.patch.tag}_{k}" for k in range(count)],
        TYPE=[Kind(k).name for k in kind],
        x_pix_patch=x + rng.normal(0, 0.3, count),
        y_pix_patch=y + rng.normal(0, 0.3, count),
        Re=re * np.exp(rng.normal(0, 0.3, count)),
        ELL=np.clip(1 - ab + rng.normal(0, 0.1, count), 0, 0.9),
        THETA=theta + rng.normal(0, 15, count),
        excluded_reason="",
        gaia_source_id="",
    )
    rows = rows.assign(x_pix_white=rows.x_pix_patch + roi.x0, y_pix_white=rows.y_pix_patch + roi.y0)
    truth = pd.concat(
        [
            pd.DataFrame({"ID": rows.ID, "band": b, "true": flux[:, i], "apart": apart})
            for i, b in enumerate(bands)
        ]
    )
    both = pd.concat([payload.sources, rows], ignore_index=True)
    return Changed(replace(payload, bands=cuts, sources=both), np.arange(len(both)) >= len(known), truth)


SETS: dict[str, Callable] = {
    f.__name__: f for f in (as_is, typed_star, typed_exp, shifted, missing, injected)
}


def source_bands(fit: PatchFit, counted) -> pd.DataFrame:
    "One row for each source that counts and each band."
    result, table, parts = fit.result, fit.sources, []
    for b, cut in enumerate(fit.payload.bands):
        columns = {
            "ID": table["ID"].astype(str).to_numpy(),
            "band": cut.name,
            "flux": result.flux[:, b],
            "error": result.flux_err[:, b],
            "flags": result.flags,
            "band_flags": table[f"flags_{cut.name}"].to_numpy(np.int64),
            "chi2": result.chi2[:, b] / np.maximum(result.npix[:, b], 1),
        }
        columns |= {f.name: getattr(result.worth, f.name)[:, b] for f in fields(Worth)}
        parts.append(pd.DataFrame(columns)[counted])
    return pd.concat(parts, ignore_index=True)


def clipped_sky(values) -> float:
    "Median of what is within three sigma of it, four times."
    for _ in range(4):
        middle = np.median(values)
        values = values[
            np.abs(values - middle) <= 3 * max(SIGMA_OF_MAD * np.median(np.abs(values - middle)), 1e-12)
        ]
    return float(np.median(values))


def aperture_ratio(fit: PatchFit, b: int, s: int) -> tuple[float, float]:
    "Light of data over that of model in an aperture around source `s`, each with its own sky; and its error."
    band, result = fit.problem.bands[b], fit.result
    rows, columns = np.indices(band.image.shape)
    r = np.hypot(columns - result.x[s], rows - result.y[s])
    radius = np.fmax(APERTURE, np.fmin(2 * result.re[s], 15))
    inside = r < radius
    around = (r > radius + GAP) & (r < radius + GAP + RING) & (band.invvar > 0)
    if (band.invvar[inside] == 0).any() or around.sum() < 100:
        return np.nan, np.nan
    light = [np.sum((im - clipped_sky(im[around]))[inside]) for im in (band.image, fit.model[b])]
    factor = 1 if band.noise is None else float(band.noise.at(inside.sum()))
    noise = factor * np.sqrt(np.sum(1 / band.invvar[inside]) * (1 + inside.sum() / around.sum()))
    return light[0] / light[1], float(np.hypot(noise, np.sqrt(max(light[0], 0) / band.gain)) / abs(light[1]))


def with_apertures(fit: PatchFit, table: pd.DataFrame) -> pd.DataFrame:
    "The table with `true` and `true_error` of isolated sources, from apertures."
    x, y, names = fit.result.x, fit.result.y, fit.sources["ID"].astype(str).to_numpy()
    out = {}
    for s in np.flatnonzero(fit.payload.is_measured.to_numpy(bool) & np.isfinite(x)):
        others = np.delete(np.hypot(x - x[s], y - y[s]), s)
        if np.min(others, initial=np.inf) > ALONE:
            out |= {
                (names[s], cut.name): aperture_ratio(fit, b, s) for b, cut in enumerate(fit.payload.bands)
            }
    ratio = [out.get(key, (np.nan, np.nan)) for key in zip(table.ID, table.band)]
    share, error = np.array(ratio).reshape(-1, 2).T
    return table.assign(true=table.flux * share, true_error=np.abs(table.flux) * error)


def run(config: Path, change: str, seed: int, every: int) -> pd.DataFrame:
    "All source-bands of a changed run."
    cfg = load_config(config)
    layout, parts = Layout.of(cfg.outputs), []
    for path in sorted(layout.patch_inputs_dir.glob("*.fits.gz"))[::every]:
        payload = read_payload(path)
        psfs = load_psfs(payload, layout, cfg)
        changed = SETS[change](payload, psfs, seed)
        fit = fit_patch(changed.payload, psfs, cfg)
        table = source_bands(fit, changed.counted)
        if change == "as_is":
            table = with_apertures(fit, table)
        elif changed.truth is not None:
            table = table.merge(changed.truth, on=["ID", "band"]).query("apart > @CLEAR")
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def judged(table: pd.DataFrame) -> pd.DataFrame:
    "Rows whose truth is known, with `bad`, `right` and `reliable`."
    table = table[np.isfinite(table.error) & np.isfinite(table.flux) & np.isfinite(table.true)]
    error = np.hypot(table.error, table.get("true_error", 0.0))
    off = np.abs(table.flux - table.true)
    far = off > OFF * np.abs(table.true)
    reliable = (table.band_flags == 0) & is_reliable(table["flags"])
    return table.assign(
        bad=far & (off > BAD_SIGMA * error),
        right=~far | (off <= RIGHT_SIGMA * error),
        far=far,
        reliable=reliable,
    )


def summary(table: pd.DataFrame) -> str:
    "Numbers of a set, and what each rule did."
    t = judged(table)
    lines = [
        f"{len(t)} source-bands, {t.bad.sum()} bad: false trust {100 * t.bad[t.reliable].mean():.2f} % "
        f"({100 * t.bad.mean():.2f} % without a verdict), "
        f"false alarm {100 * (~t.reliable[t.right]).mean():.2f} %; "
        f"of those off by more than 10 % {100 * (~t.reliable[t.far]).mean():.1f} % are not reliable",
        f"{'rule':20s} {'bad':>5s} {'alone':>5s} {'of the right':>12s}",
    ]
    for registry, column in ((BAND_FLAGS, "band_flags"), ([f if f.hard else None for f in FLAGS], "flags")):
        for bit, info in enumerate(registry):
            hit = (t[column].to_numpy(np.int64) >> bit & 1) == 1
            if info is not None and hit.any():
                others = t.assign(**{column: t[column].to_numpy(np.int64) & ~(1 << bit)})
                alone = hit & (others.band_flags == 0) & is_reliable(others["flags"])
                share = 100 * (t.right & hit).sum() / max(t.right.sum(), 1)
                lines.append(
                    f"{info.name:20s} {(t.bad & hit).sum():5d} {(t.bad & alone).sum():5d} {share:10.2f} %"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", choices=SETS, default="as_is")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="only every n-th patch")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = run(args.config, args.set, args.seed, args.every)
    if args.set not in ("as_is", "injected"):
        plain = judged(run(args.config, "as_is", args.seed, args.every).assign(true=lambda t: t.flux))
        truth = plain.loc[plain.reliable, ["ID", "band", "true"]]
        table = table.merge(truth, on=["ID", "band"])
    if args.out:
        table.to_pickle(args.out)
    print(f"{args.config.parent.name}, {args.set}, seed {args.seed}: {summary(table)}")


if __name__ == "__main__":
    main()
