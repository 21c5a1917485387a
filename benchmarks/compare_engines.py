"""The native engine and Tractor on the same patches of the sample tile: python benchmarks/compare_engines.py

Needs Dustin Lang's Tractor. Writes what it measured, numbers only, to `engines_patches.csv`,
`engines_sources.csv` and
`engines_fluxes.csv` beside this file; the notebook `81_engines` shows them. Takes some minutes a patch.
"""

import argparse
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import one_thread  # noqa: F401  before NumPy
import pandas as pd
from astropy.table import Table
from measure import best_of, machine
from scipy.sparse import csr_matrix, hstack
from tractor_profiles import tractor_profiles

from tract7dt.config.load import load_config
from tract7dt.core.reading import read_csv
from tract7dt.fit.engine import fit
from tract7dt.fit.parameters import Start
from tract7dt.fit.problem import FitProblem, FitResult, Kind, PixelPSF
from tract7dt.fit.psf import psf_cube
from tract7dt.fit.render import Window, render_stack
from tract7dt.fit.tractor.engine import assemble, run_stages
from tract7dt.fit.tractor.measure import design, free_everything
from tract7dt.fit.tractor.scene import TractorSettings, build_scene, native_stamp, require_tractor
from tract7dt.patches.payload import Payload, read_payload
from tract7dt.patches.problem import fit_problem, load_psfs
from tract7dt.pipeline.commands import run
from tract7dt.workdir.layout import Layout

FOLDER = Path(__file__).resolve().parent
SAMPLE = FOLDER.parent / "sample_data" / "config.yaml"
PERIOD, HALF = 321, 120
OPTIONS = {"weak_priors": True, "ignore_unmodelled": False, "dlnp_stop": 0.01, "max_iters": 20}
TRACTORS = ("tractor_070", "tractor", "tractor_mended")
RENDERERS = ("native", "native_same_profiles", "tractor")


def same_for_both(problem: FitProblem) -> FitProblem:
    "All pixels, weak priors, and the one PSF stamp a band that Tractor can use."
    middle = (problem.shape[1] - 1) / 2, (problem.shape[0] - 1) / 2
    bands = tuple(replace(band, psf=PixelPSF(native_stamp(band.psf, middle))) for band in problem.bands)
    return replace(problem, bands=bands, options=replace(problem.options, **OPTIONS))


@dataclass(frozen=True, eq=False)
class Patch:
    "A payload and the fit that both engines get."

    payload: Payload
    problem: FitProblem

    @property
    def tag(self) -> str:
        return self.payload.patch.tag


@contextmanager
def finished_run(config: Path, work: Path | None):
    "Configuration and layout of a finished run; without one in `work`, run the sample in a temporary folder."
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config(config, overrides={"outputs.work_dir": str(work or folder)})
        if work is None:
            run(cfg)
        yield cfg, Layout.of(cfg.outputs)


def sample_patches(config: Path, work: Path | None, count: int):
    "`count` patches of a tile, spread over it."
    with finished_run(config, work) as (cfg, layout):
        tags = read_csv(layout.patches_csv)["patch_tag"].sort_values().to_list()
        for tag in [tags[k] for k in np.linspace(0, len(tags) - 1, count).round().astype(int)]:
            payload = read_payload(layout.payload(tag))
            yield Patch(payload, same_for_both(fit_problem(payload, load_psfs(payload, layout, cfg), cfg)))


@dataclass(frozen=True, eq=False)
class Solution:
    "What an engine made of a patch, the processor seconds it took, and how its last stage ended."

    result: FitResult
    cpu: float
    end: str


def as_in_070(problem: FitProblem) -> FitProblem:
    """Plain maximum likelihood with the options of 0.7.0, and only the sources inside the region, which is
    all it had.

    The others stay in the list without a position, so that no engine fits them and rows keep their places.
    """
    sources, (height, width) = problem.sources, problem.shape
    inside = (sources.x >= 0) & (sources.y >= 0) & (sources.x <= width - 1) & (sources.y <= height - 1)
    options = replace(problem.options, weak_priors=False, dlnp_stop=1e-12)
    return replace(problem, sources=replace(sources, x=np.where(inside, sources.x, np.nan)), options=options)


def solve_native(problem: FitProblem, same_profiles: bool) -> Solution:
    "The native engine with its own profiles or with those of Tractor."
    problem = replace(
        problem, options=replace(problem.options, profiles="mixture" if same_profiles else "exact")
    )
    with tractor_profiles() if same_profiles else nullcontext():
        timing = best_of(1 if same_profiles else 3, lambda: fit(problem))
    return Solution(timing.result, timing.cpu, "")


def solve_tractor(problem: FitProblem, mended: bool) -> Solution:
    "Tractor as 0.7.0 ran it, or with the right derivatives by position."
    scene = build_scene(problem, TractorSettings(mend_positions=mended))
    timing = best_of(1, lambda: run_stages(scene, staged=True))
    return Solution(assemble(scene, timing.result), timing.cpu, timing.result[-1].end.name.lower())


def solutions(problem: FitProblem) -> dict[str, Solution]:
    "All ways to solve a patch; `strict` and `070` are the problem as 0.7.0 had it."
    strict = as_in_070(problem)
    return {
        "native": solve_native(problem, False),
        "native_same_profiles": solve_native(problem, True),
        "native_strict": solve_native(strict, True),
        "tractor_070": solve_tractor(strict, False),
        "tractor": solve_tractor(problem, False),
        "tractor_mended": solve_tractor(problem, True),
    }


def at(problem: FitProblem, result: FitResult) -> FitProblem:
    "The problem with the positions and shapes of a result as its start."
    galaxy = problem.sources.kind != Kind.STAR
    given = {
        name: np.where(galaxy, getattr(result, name), getattr(problem.sources, name))
        for name in ("re", "ab", "theta", "n")
    }
    return replace(problem, sources=replace(problem.sources, x=result.x, y=result.y, **given))


def native_templates(problem: FitProblem, profiles: str):
    """Weighted templates of the start parameters by the native renderer, one sparse [pixels, S + 1] a band;
    sky last.
    """
    height, width = problem.shape
    grid, cube = psf_cube([band.psf for band in problem.bands], PERIOD)
    columns = [[] for _ in problem.bands]
    start = Start.of(problem.sources)
    for kind, theta, usable in zip(problem.sources.kind, start.theta, start.usable):
        whole = np.zeros((len(problem.bands), height, width), np.float32)
        window = Window.around(theta[0], theta[1], HALF)
        part = window.clip(Window(0, width, 0, height))
        if usable and not part.empty:
            whole[part.slices] = render_stack(kind, theta, window, grid, cube, profiles=profiles)[:, 0][
                part.within(window)
            ]
        for own, image in zip(columns, whole):
            own.append(csr_matrix(image.reshape(-1, 1)))
    return [
        hstack([*own, np.ones((height * width, 1))]).multiply(np.sqrt(band.invvar).reshape(-1, 1)).tocsr()
        for own, band in zip(columns, problem.bands)
    ]


def tractor_templates(problem: FitProblem):
    "The same by Tractor's renderer."
    scene = build_scene(
        problem, TractorSettings(start_flux=np.ones((len(problem.sources), len(problem.bands))))
    )
    free_everything(scene)
    place = np.append(6 * len(scene.index) + np.arange(len(scene.index)), 7 * len(scene.index))
    target = np.append(scene.index, len(problem.sources))
    out = []
    for b in range(len(problem.bands)):
        found, whole = design(scene, b)[:, place].tocoo(), problem.shape[0] * problem.shape[1]
        out.append(
            csr_matrix((found.data, (found.row, target[found.col])), shape=(whole, len(problem.sources) + 1))
        )
    return out


def templates(problem: FitProblem, renderer: str):
    "Weighted templates of the start parameters by any renderer."
    if renderer == "tractor":
        return tractor_templates(problem)
    with tractor_profiles() if renderer == "native_same_profiles" else nullcontext():
        return native_templates(problem, "exact" if renderer == "native" else "mixture")


@dataclass(frozen=True, eq=False)
class Check:
    """Chi-square of a solution as it is, and with fluxes and sky at their best; those fluxes and conditional
    errors [S, B].
    """

    chi2: float
    best_chi2: float
    flux: np.ndarray
    flux_err_cond: np.ndarray


def check(problem: FitProblem, result: FitResult, renderer: str) -> Check:
    "Evaluate a solution with a renderer, and solve its fluxes again, linearly, at its positions and shapes."
    chi2, best, fluxes, errors = 0.0, 0.0, [], []
    for b, A in enumerate(templates(at(problem, result), renderer)):
        band = problem.bands[b]
        data = (band.image * np.sqrt(band.invvar)).ravel().astype(float)
        linear = np.nan_to_num(np.append(result.flux[:, b], result.sky[b]))
        solved, error = linear_solution(A, data)
        chi2, best = chi2 + np.sum((data - A @ linear) ** 2), best + np.sum((data - A @ solved) ** 2)
        fluxes.append(solved[:-1]), errors.append(error[:-1])
    return Check(chi2, best, np.array(fluxes).T, np.array(errors).T)


def linear_solution(A, data) -> tuple[np.ndarray, np.ndarray]:
    "Least-squares solution and its conditional errors; 0 and infinity for columns without data."
    normal = (A.T @ A).toarray().astype(float)
    diagonal = np.diag(normal)
    scale = np.where(diagonal > 0, diagonal, 1) ** -0.5
    scaled = normal * scale[:, None] * scale + 1e-12 * np.eye(len(scale))
    solved = scale * np.linalg.lstsq(scaled, scale * (A.T @ data), rcond=1e-10)[0]
    return np.where(diagonal > 0, solved, 0), np.where(diagonal > 0, scale, np.inf)


def patch_rows(patch: Patch, solved, checks) -> list[dict]:
    "One row for each solution of a patch."
    problem = patch.problem
    pixels = sum(int((band.invvar > 0).sum()) for band in problem.bands)
    rows = []
    for name, solution in solved.items():
        row = {
            "patch": patch.tag,
            "solution": name,
            "sources": len(problem.sources),
            "pixels": pixels,
            "cpu_s": solution.cpu,
            "iterations": solution.result.iterations,
            "end": solution.end,
            "converged": int(solution.result.converged.sum()),
        }
        for renderer in RENDERERS:
            row |= {
                f"chi2_{renderer}": checks[name, renderer].chi2,
                f"best_chi2_{renderer}": checks[name, renderer].best_chi2,
            }
        rows.append(row)
    return rows


def source_rows(patch: Patch, solved, truth: pd.DataFrame) -> pd.DataFrame:
    """Positions and shapes of each source in all solutions, start values and truth; positions in region
    pixels.
    """
    sources, roi = patch.problem.sources, patch.payload.patch.roi
    names = ("x", "y", "re", "ab", "theta", "n")
    known = truth.reindex(patch.payload.sources["ID"])
    table = pd.DataFrame(
        {
            "patch": patch.tag,
            "ID": patch.payload.sources["ID"].to_numpy(),
            "kind": [Kind(k).text for k in sources.kind],
            "measured": patch.payload.is_measured.to_numpy(),
            "neighbour_pix": known["neighbour_pix"].to_numpy(),
        }
    )
    for name in names:
        table[f"{name}_start"] = getattr(sources, name)
    for key, name in (("re", "Re"), ("ab", "ELL"), ("theta", "THETA"), ("n", "n")):
        table[f"{key}_true"] = (1 - known[name] if key == "ab" else known[name]).to_numpy(float)
    origin = offset_of(patch, known)
    table["x_true"], table["y_true"] = (
        known["x"].to_numpy() - roi.x0 - origin[0],
        known["y"].to_numpy() - roi.y0 - origin[1],
    )
    for solution, found in solved.items():
        for name in names:
            table[f"{name}_{solution}"], table[f"{name}_err_{solution}"] = (
                getattr(found.result, name),
                getattr(found.result, f"{name}_err"),
            )
        table[f"status_{solution}"], table[f"gain_{solution}"] = found.result.status, found.result.last_dlnp
    return table


def offset_of(patch: Patch, known) -> tuple[float, float]:
    """By how many whole pixels the truth's frame is away from the working frame (the crop), from the start
    positions.
    """
    roi, sources = patch.payload.patch.roi, patch.problem.sources
    return tuple(
        float(np.round(np.nanmedian(known[axis].to_numpy() - low - start)))
        for axis, low, start in (("x", roi.x0, sources.x), ("y", roi.y0, sources.y))
    )


def flux_rows(patch: Patch, solved, checks, truth: pd.DataFrame) -> pd.DataFrame:
    """Fluxes of each source and band: those of the solutions, and solved again at the shapes of the Tractor
    solutions.
    """
    ids, parts = patch.payload.sources["ID"].to_numpy(), []
    for b, band in enumerate(patch.problem.bands):
        table = pd.DataFrame(
            {
                "patch": patch.tag,
                "ID": ids,
                "band": band.name,
                "flux_true": truth.reindex(ids)[f"FLUX_{band.name}"].to_numpy()
                if f"FLUX_{band.name}" in truth
                else np.nan,
            }
        )
        for name, found in solved.items():
            table[f"flux_{name}"], table[f"err_{name}"] = found.result.flux[:, b], found.result.flux_err[:, b]
            table[f"cond_{name}"] = found.result.flux_err_cond[:, b]
        for name in TRACTORS:
            for renderer in ("tractor", "native_same_profiles"):
                again = checks[name, renderer]
                table[f"again_{name}_by_{renderer}"], table[f"again_cond_{name}_by_{renderer}"] = (
                    again.flux[:, b],
                    again.flux_err_cond[:, b],
                )
        parts.append(table)
    return pd.concat(parts)


def compare(patch: Patch, truth: pd.DataFrame):
    "Rows of the three tables for one patch."
    solved = solutions(patch.problem)
    checks = {
        (name, renderer): check(patch.problem, found.result, renderer)
        for name, found in solved.items()
        for renderer in RENDERERS
    }
    return (
        patch_rows(patch, solved, checks),
        source_rows(patch, solved, truth),
        flux_rows(patch, solved, checks, truth),
    )


def true_values(folder: Path) -> pd.DataFrame:
    """The truth of the sample by ID, fluxes in the scaled counts that a fit measures (headers' zero points
    are a little off).
    """
    truth, bands = (
        Table.read(folder / "truth.ecsv").to_pandas().set_index("ID"),
        Table.read(folder / "truth_bands.ecsv"),
    )
    return truth.assign(
        **{
            f"FLUX_{band}": truth[f"FLUX_{band}"] * scale
            for band, scale in zip(bands["band"], bands["flux_scale"])
        }
    )


def main(config: Path, work: Path | None, count: int, folder: Path) -> None:
    "Measure patch after patch; the tables on disk hold what is done so far."
    print(f"{machine()}; Tractor {require_tractor().version}")
    truth = true_values(config.parent)
    patches, sources, fluxes = [], [], []
    for patch in sample_patches(config, work, count):
        rows, own, bands = compare(patch, truth)
        patches += rows
        sources.append(own), fluxes.append(bands)
        print(
            pd.DataFrame(rows)[
                [
                    "patch",
                    "solution",
                    "sources",
                    "cpu_s",
                    "end",
                    "converged",
                    "chi2_tractor",
                    "best_chi2_tractor",
                ]
            ].to_string(),
            flush=True,
        )
        for name, table in (
            ("patches", pd.DataFrame(patches)),
            ("sources", pd.concat(sources)),
            ("fluxes", pd.concat(fluxes)),
        ):
            table.to_csv(
                folder / f"engines_{name}.csv",
                index=False,
                float_format="%.8g" if name == "patches" else "%.6g",
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=SAMPLE)
    parser.add_argument(
        "--work",
        type=Path,
        help="work folder of a finished run with that configuration; default: run it first",
    )
    parser.add_argument("--patches", type=int, default=3, help="how many patches of the tile")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder for the tables")
    words = parser.parse_args()
    main(words.config, words.work, words.patches, words.to)
