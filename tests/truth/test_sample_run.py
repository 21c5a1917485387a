"""The whole pipeline on the sample tile, judged by the truth that GalSim rendered."""

import json

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from tract7dt.config.load import load_config, to_yaml
from tract7dt.inputs.gaia_table import load_gaia
from tract7dt.patches.payload import read_payload
from tract7dt.results.merge import read_catalog
from tract7dt.results.zero_points import add_magnitudes, solve_zero_points
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("sample_run")
BANDS = ("m400", "m500", "m575", "m650", "m750", "m850")


@pytest.fixture(scope="module")
def layout(sample_run):
    return Layout.of(load_config(sample_run / "config.yaml").outputs)


@pytest.fixture(scope="module")
def catalog(layout):
    return read_catalog(layout.final_catalog)


@pytest.fixture(scope="module")
def truth(sample_run):
    return Table.read(sample_run / "truth.ecsv").to_pandas()


@pytest.fixture(scope="module")
def bands(sample_run):
    return Table.read(sample_run / "truth_bands.ecsv").to_pandas().set_index("band")


@pytest.fixture(scope="module")
def matched(catalog, truth, bands):
    """One row per fitted source and band: true and fitted flux, error, S/N, model."""
    joined = catalog.merge(
        truth.drop(columns=["RA", "DEC", "Re", "ELL", "THETA"]), on="ID", suffixes=("", "_true")
    )
    gaia = catalog[catalog.ID.str.startswith("gaia_")].assign(source_id=lambda t: t.gaia_source_id)
    injected = gaia.merge(
        truth.drop(columns=["ID", "RA", "DEC", "Re", "ELL", "THETA"]), on="source_id", suffixes=("", "_true")
    )
    rows = pd.concat([joined, injected])
    rows = rows[rows.stype_fit != ""]
    parts = [
        pd.DataFrame(
            {
                "ID": rows.ID,
                "band": band,
                "kind": rows.kind,
                "reliable": rows.fit_is_reliable,
                "snr": rows[f"SNR_{band}"],
                "true": rows[f"FLUX_{band}_true" if f"FLUX_{band}_true" in rows else f"FLUX_{band}"]
                * bands.flux_scale[band],
                "flux": rows[f"FLUX_{band}_fit"],
                "error": rows[f"FLUXERR_{band}_fit"],
            }
        )
        for band in BANDS
    ]
    return pd.concat(parts, ignore_index=True).dropna(subset=["flux"])


def test_every_active_source_is_fitted(catalog):
    active = ~catalog.excluded_any.astype(bool)
    assert active.sum() > 330
    assert catalog.stype_fit[active].ne("").all()


def test_a_source_without_a_pixel_in_a_band_says_so(catalog, truth):
    """One galaxy lies on a patch of NaN pixels in one band: no flux there, an infinite error, a flag; all
    else is measured.
    """
    (name,) = truth.ID[truth.role == "on_nan_patch"]
    row = catalog.set_index("ID").loc[name]
    assert (
        np.isnan(row.FLUX_m575_fit)
        and np.isinf(row.FLUXERR_m575_fit)
        and "no_data_in_band" in row.fit_quality_issues
    )
    fitted = catalog[catalog.stype_fit != ""]
    missing = fitted[[f"FLUX_{band}_fit" for band in BANDS]].isna()
    assert list(fitted.ID[missing.any(axis=1)]) == [name] and missing.to_numpy().sum() == 1


def test_no_row_is_lost(catalog, sample_run):
    given = pd.read_csv(sample_run / "catalog.csv", dtype=str, keep_default_na=False)
    assert list(catalog.ID[: len(given)]) == list(given.ID)
    assert catalog.ID[len(given) :].str.startswith("gaia_").all()
    assert list(catalog.NOTE[: len(given)]) == list(given.NOTE)


def test_every_excluded_source_says_why(catalog):
    excluded = catalog[catalog.excluded_any.astype(bool)]
    assert set(excluded.excluded_reason) == {"crop", "saturation", "no_coordinates", "off_frame"}
    assert excluded.fit_quality_issues.str.startswith("excluded").all()
    assert not excluded.fit_is_reliable.astype(bool).any()
    assert (excluded.stype_fit == "").all()


def test_injected_gaia_stars_are_there(catalog, truth):
    missing = truth[
        truth.in_gaia.astype(bool) & ~truth.in_catalog.astype(bool) & ~truth.saturated.astype(bool)
    ]
    injected = catalog[catalog.ID.str.startswith("gaia_")]
    assert len(injected) >= 15
    assert set(injected.gaia_source_id) <= set(truth.source_id)
    assert (injected.TYPE == "STAR").all()
    assert len(set(missing.source_id) - set(catalog.gaia_source_id)) <= 0.2 * len(missing)


@pytest.mark.parametrize("kind, limit", [("STAR", 0.01), ("EXP", 0.02), ("DEV", 0.04), ("SERSIC", 0.04)])
def test_fluxes_are_right(matched, kind, limit):
    """Median bias of fluxes at S/N > 20; the limits are what a converged fit with a good ePSF achieves on one
    tile.
    """
    rows = matched[(matched.kind == kind) & (matched.snr > 20) & matched.reliable.astype(bool)]
    assert len(rows) > 60
    assert abs(np.median(rows.flux / rows.true - 1)) < limit


@pytest.mark.parametrize("band", BANDS)
def test_fluxes_of_stars_are_right_in_every_band(matched, band):
    rows = matched[
        (matched.kind == "STAR") & (matched.snr > 20) & (matched.band == band) & matched.reliable.astype(bool)
    ]
    assert abs(np.median(rows.flux / rows.true - 1)) < 0.01


def test_errors_mean_what_they_say(matched):
    """Robust width of (fit - truth) / error over all reliable fluxes; 1 is perfect, blends and the ePSF widen
    it a little.
    """
    rows = matched[matched.reliable.astype(bool)]
    pull = (rows.flux - rows.true) / rows.error
    assert 0.85 < 1.4826 * np.median(np.abs(pull - np.median(pull))) < 1.25


@pytest.mark.parametrize("band", BANDS)
def test_zero_points_are_recovered(layout, bands, band):
    summary = pd.read_csv(layout.zp_summary).set_index("band")
    assert abs(summary.zp[band] - bands.zp_expected[band]) < 0.01
    assert summary.n_used[band] >= 15
    assert summary.zp_err[band] < 0.005


def test_magnitudes_are_calibrated(catalog, truth):
    joined = catalog.merge(truth, on="ID", suffixes=("", "_true"))
    for band in BANDS:
        bright = joined[
            (joined[f"SNR_{band}"] > 30) & (joined.kind == "STAR") & joined.fit_is_reliable.astype(bool)
        ]
        assert abs(np.median(bright[f"MAG_{band}_fit"] - bright[f"MAG_{band}"])) < 0.012


@pytest.mark.parametrize("band", BANDS)
def test_calibrated_fluxes_and_their_errors_are_right(catalog, truth, band):
    """In microjansky, against the truth: no bias, and pulls as wide as they should be."""
    joined = catalog.merge(truth, on="ID", suffixes=("", "_true"))
    good = joined[joined[f"reliable_{band}"].astype(bool) & joined.fit_is_reliable.astype(bool)]
    true = 10 ** (0.4 * (23.9 - good[f"MAG_{band}"]))
    pull = (good[f"FNU_{band}"] - true) / good[f"FNUERR_{band}"]
    assert len(pull) > 300 and abs(pull.median()) < 0.2
    assert 0.8 < 1.4826 * (pull - pull.median()).abs().median() < 1.25


@pytest.mark.parametrize("band", BANDS)
def test_depths_are_those_of_the_tile(catalog, truth, band):
    """DEPTH5 against the best possible signal to noise that the sample's maker noted for faint stars."""
    joined = catalog.merge(truth, on="ID", suffixes=("", "_true"))
    faint = joined[(joined.kind == "STAR") & (joined[f"SNR_{band}"] < 15) & joined.stype_fit.ne("")]
    best = faint[f"MAG_{band}"] + 2.5 * np.log10(faint[f"SNR_{band}"] / 5)
    assert len(faint) > 20 and abs((faint[f"DEPTH5_{band}"] - best).median()) < 0.12
    limit = catalog[f"MAGLIM3_{band}"][catalog[f"FNU_{band}"] > 0]
    detected = (catalog[f"FNU_{band}"] > 3 * catalog[f"FNUERR_{band}"])[limit.index]
    assert (detected == (catalog[f"MAG_{band}_fit"][limit.index] < limit)).all()


def test_a_slope_of_the_zero_point_is_found_and_taken_out(catalog, truth, sample_run):
    """Two percent from side to side in one band; the others stay as they are."""
    x, band = catalog.x_pix_white_fit, "m650"
    slope = 1 + 0.02 * (x - x.mean()) / (x.max() - x.min())
    names = [f"{kind}_{band}_fit" for kind in ("FLUX", "FLUXERR")]
    tilted = catalog.assign(**{name: catalog[name] * slope for name in names})
    gaia = load_gaia(sample_run / "gaia_xp.csv", BANDS)
    solution = solve_zero_points(tilted, gaia, BANDS, load_config(sample_run / "config.yaml").zp)
    assert {b: z.field.degree for b, z in solution.bands.items()} == {b: int(b == band) for b in BANDS}
    field, middle = solution.bands[band].field, np.full(2, float(catalog.y_pix_white_fit.mean()))
    ends = np.array([x.min(), x.max()])
    off = np.diff(field.at(ends, middle))[0] - 2.5 * np.log10(1.01 / 0.99)
    assert abs(off) < 3 * np.hypot(*field.error_at(ends, middle)) < 0.02
    joined = add_magnitudes(tilted, solution, BANDS).merge(truth, on="ID", suffixes=("", "_true"))
    stars = joined[
        (joined.kind == "STAR") & (joined[f"SNR_{band}"] > 100) & joined.fit_is_reliable.astype(bool)
    ]
    left = stars[f"MAG_{band}_fit"] - stars[f"MAG_{band}"]
    assert abs(np.polyfit(stars.x_pix_white_fit / np.ptp(x.dropna()), left, 1)[0]) < 0.01
    assert abs(left.median()) < 0.012


def test_no_patch_failed_although_the_data_are_bad(layout):
    """One image holds NaN pixels and one galaxy lies in the last pixel of a region of interest: both are
    really there.
    """
    summary = pd.read_csv(layout.run_summary)
    assert (summary.status == "ok").all()
    payloads = [read_payload(layout.payload(tag)) for tag in summary.patch]
    assert any((cut.mask & 1).any() for p in payloads for cut in p.bands)
    last = [
        (p.sources.x_pix_patch > p.patch.roi.width - 1) | (p.sources.y_pix_patch > p.patch.roi.height - 1)
        for p in payloads
    ]
    assert any((rows & ~p.sources.TYPE.eq("STAR")).any() for rows, p in zip(last, payloads))


def test_json_is_valid(layout):
    for path in layout.work_dir.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda token: pytest.fail(f"{path}: {token}"))


def test_nothing_temporary_is_left(layout):
    assert not [p for p in layout.work_dir.rglob(".*")]


def test_tree(layout):
    """The products that this version writes are where users of 0.7.0 look for them."""
    work = layout.work_dir
    for name in (
        "run.log",
        "wcs.fits",
        "output_catalog.csv",
        "manifest.json",
        "bright_mask/white_bright_mask.fits",
        "EPSFs/epsf_summary.json",
        "EPSFs/m400/psf_model.fits",
        "EPSFs/m400/r00_c00/epsf.npy",
        "EPSFs/m400/r00_c00/meta.json",
        "patches/patches.csv",
        "patches/patches.json",
        "outputs/run_summary.csv",
        "ZP/catalog_with_Gaia.csv",
        "ZP/zp_summary.csv",
        "ZP/zp_all_bands__per_object.csv",
    ):
        assert (work / name).exists(), name
    assert list(work.glob("config_used_*.yaml"))


CHAIN = ("run-epsf", "build-patches", "build-patch-inputs", "run-patches", "merge", "compute_zp")


def middle_catalog(program, cfg, commands=("run",)):
    """The bytes of the catalog that commands make of the middle of the sample tile."""
    path = cfg.outputs.work_dir.with_suffix(".yaml")
    path.write_text(to_yaml(cfg))
    for command in commands:
        done = program(command, path)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return Layout.of(cfg.outputs).final_catalog.read_bytes()


def test_single_commands_and_any_number_of_workers_give_the_same_catalog(middle_config, program):
    """One run with one worker, one with three, one as a chain of commands."""
    given = middle_catalog(program, middle_config())
    assert given.count(b"\n") > 100
    assert (
        middle_catalog(program, middle_config(**{"patch_run.max_workers": 3, "epsf.max_workers": 3})) == given
    )
    assert middle_catalog(program, middle_config(), CHAIN) == given
