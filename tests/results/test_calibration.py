"""What a catalog says about its fluxes: in every format, to every reader."""

import warnings

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.io import fits
from astropy.io.votable import ucd
from astropy.table import Table

from tract7dt.config.schema import Config
from tract7dt.core.columns import MAG_COLUMNS, all_columns, as_declared, expand, result_columns
from tract7dt.pipeline import stages
from tract7dt.results.merge import read_catalog, write_catalog
from tract7dt.results.metadata import about_catalog
from tract7dt.results.zero_points import BandZeroPoint, ZeroPoints, add_magnitudes
from tract7dt.workdir.layout import Layout

BANDS = ["g", "r"]
SUFFIXES = (".csv", ".ecsv", ".fits", ".parquet")
ZERO = BandZeroPoint("r", 9, 9, 0, 0, 3.0, 25.1, 0.004, 0.01, 9, 25.1, 0.02, 0.03, 9, 100.0)
SOLVED = ZeroPoints({"r": ZERO}, pd.DataFrame())


def sources(bands=BANDS) -> pd.DataFrame:
    "Four sources: bright, negative, without data, and one that was not fitted."
    table = pd.DataFrame(
        {
            "ID": ["1", "2", "3", "4"],
            "RA": [10.0, 10.1, 10.2, 10.3],
            "DEC": [1.0] * 4,
            "excluded_any": [False, False, False, True],
            "excluded_reason": ["", "", "", "crop"],
            "stype_fit": ["star", "exp", "star", ""],
            "fit_flags": [0, 0, 0, 1],
            "fit_is_reliable": [True, True, True, False],
            "opt_converged": [True, True, False, False],
            "RA_fit": [10.0, 10.1, 10.2, np.nan],
            "DEC_fit": [1.0, 1.0, 1.0, np.nan],
        }
    )
    light = {
        "FLUX_{}_fit": [1000.0, -3.0, np.nan, np.nan],
        "FLUXERR_{}_fit": [10.0, 5.0, np.inf, np.nan],
        "FLUXERR_STAR_{}_fit": [4.0, 4.0, 4.0, np.nan],
        "psf_eps_pred_{}": [0.01, 0.01, np.nan, np.nan],
    }
    columns = {name.format(band): values for band in bands for name, values in light.items()}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


@pytest.fixture
def catalog():
    table = add_magnitudes(sources(), SOLVED, BANDS, "standard_error", 24.0)
    return as_declared(table, all_columns(BANDS))


def test_total_errors_add_up(catalog):
    scale = 10 ** (0.4 * (23.9 - 25.1))
    relative = np.hypot(0.01, 0.004 / 1.0857362)
    assert np.allclose(catalog.FNU_r[:2], np.array([1000.0, -3.0]) * scale)
    assert np.isclose(catalog.FNUERR_r[0], np.hypot(10, 1000 * relative) * scale)
    assert np.isclose(catalog.MAGERR_r_fit[0], 1.0857362 * catalog.FNUERR_r[0] / catalog.FNU_r[0])
    assert np.isclose(catalog.FNUERR_g[0], np.hypot(10, 10) * 10 ** (0.4 * (23.9 - 24.0)))


def test_a_negative_flux_has_a_limit_and_no_magnitude(catalog):
    assert np.isnan(catalog.MAG_r_fit[1]) and np.isnan(catalog.MAGERR_r_fit[1]) and catalog.FNU_r[1] < 0
    assert np.isclose(catalog.MAGLIM3_r[1], 23.9 - 2.5 * np.log10(3 * catalog.FNUERR_r[1]))
    assert np.allclose(catalog.DEPTH5_r[:3], 25.1 - 2.5 * np.log10(20)) and np.isnan(catalog.DEPTH5_r[3])


def test_without_data_there_is_no_flux_and_no_bound_on_it(catalog):
    assert np.isnan(catalog.FNU_r[2]) and np.isinf(catalog.FNUERR_r[2]) and np.isnan(catalog.MAGLIM3_r[2])
    assert catalog[[c.name for c in expand(MAG_COLUMNS, BANDS) if c.kind == "float"]].iloc[3].isna().all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_back_what_was_written(catalog, tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    write_catalog(catalog, path, BANDS, about_catalog(catalog, BANDS, SOLVED, Config()))
    back = read_catalog(path)
    pd.testing.assert_frame_equal(back, catalog)
    write_catalog(back, path, BANDS)
    pd.testing.assert_frame_equal(read_catalog(path), catalog)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_the_file_says_how_it_is_calibrated(catalog, tmp_path, suffix):
    path, cfg = tmp_path / f"c{suffix}", Config()
    write_catalog(catalog, path, BANDS, about_catalog(catalog, BANDS, SOLVED, cfg))
    table = Table.read(path)
    about = table.meta
    assert about["PROGRAM"].startswith("tract7dt ") and about["DATE"].startswith("20") and about["CONFIG"]
    assert (about["BAND1"], about["ZPSRC1"], about["BAND2"], about["ZPSRC2"]) == ("g", "header", "r", "gaia")
    assert (about["ZP1"], about["ZP2"], about["ZPERR2"], about["ZPREF"]) == (25.0, 25.1, 0.004, 25.0)
    assert about["DEPTH2"] == round(25.1 - 2.5 * np.log10(20), 4) and "ZPERR1" not in about
    assert table["FNU_r"].unit == units.uJy and table["MAG_r_fit"].unit == units.mag
    assert table["FNU_r"].meta["ucd"] == "phot.flux.density;meta.main"
    assert table["opt_converged"].dtype == bool


def test_two_configurations_have_two_digests():
    changed = Config.model_validate({"zp": {"clip_sigma": 4}})
    digests = [about_catalog(sources(), BANDS, None, cfg)["CONFIG"] for cfg in (Config(), Config(), changed)]
    assert digests[0] == digests[1] != digests[2]


def test_cards_name_every_column(catalog, tmp_path):
    write_catalog(catalog, tmp_path / "c.fits", BANDS)
    header = fits.getheader(tmp_path / "c.fits", 1)
    for number, name in enumerate(catalog, 1):
        assert header[f"TTYPE{number}"] == name
        assert ucd.check_ucd(header[f"TUCD{number}"], check_controlled_vocabulary=True), name
        assert header[f"TCOMM{number}"]


@pytest.mark.parametrize("column", all_columns(["g"]), ids=lambda column: column.name)
def test_units_and_descriptors_are_standard(column):
    assert ucd.check_ucd(column.ucd, check_controlled_vocabulary=True)
    units.Unit(column.unit.replace("scaled counts", "count"))


def test_one_pair_of_positions_is_the_main_one():
    main = [c.name for c in all_columns(BANDS) if c.ucd.startswith("pos.eq") and "meta.main" in c.ucd]
    assert main == ["RA_fit", "DEC_fit"]


def test_others_read_flags_of_a_csv_as_booleans(catalog, tmp_path):
    write_catalog(catalog, tmp_path / "c.csv", BANDS)
    flags = [c.name for c in result_columns(BANDS) if c.kind == "bool" and c.name in catalog]
    assert len(flags) > 2
    for table in (pd.read_csv(tmp_path / "c.csv"), Table.read(tmp_path / "c.csv", format="pandas.csv")):
        assert all(table[name].dtype == bool for name in flags)


def test_a_catalog_with_gaps_in_flags_is_read(catalog, tmp_path):
    """Version 1.0.0 left flags of sources without a fit empty, and had no calibrated fluxes."""
    old = catalog.drop(columns=[c.name for c in expand(MAG_COLUMNS, BANDS)])
    old = old.assign(opt_converged=old.opt_converged.astype("boolean").mask(old.excluded_any.astype(bool)))
    write_catalog(old, tmp_path / "c.csv", BANDS)
    back = read_catalog(tmp_path / "c.csv")
    assert back.opt_converged.isna().sum() == 1
    pd.testing.assert_frame_equal(add_magnitudes(back, SOLVED, BANDS)[["FNU_r"]], catalog[["FNU_r"]])


def test_many_bands_are_read_without_a_warning(tmp_path):
    bands = [f"m{400 + 25 * k}" for k in range(40)]
    with warnings.catch_warnings(action="error"):
        write_catalog(add_magnitudes(sources(bands), None, bands), tmp_path / "c.csv", bands)
        table = read_catalog(tmp_path / "c.csv")
        table["new"] = 1
    assert (table[[f"zp_source_{band}" for band in bands]] == "header").all(axis=None)


def test_zero_points_that_are_gone_leave_no_magnitudes(catalog, tmp_path, caplog):
    """Magnitudes of Gaia stars do not outlive the Gaia table: those of the headers take their place."""
    cfg = Config.model_validate(
        {"outputs": {"work_dir": str(tmp_path)}, "inputs": {"gaiaxp_synphot_csv": None}}
    )
    layout = Layout.of(cfg.outputs.model_copy(update={"final_catalog": tmp_path / "c.csv"}))
    solved = catalog.assign(gaia_source_id="")
    write_catalog(solved, layout.final_catalog, BANDS)
    caplog.set_level("INFO")
    table, solution = stages.calibrate(cfg, layout)
    assert solution is None and list(table.zp_source_r) == ["header"] * 4
    assert "zero points of the headers in g, r" in caplog.text
    before = layout.final_catalog.stat().st_mtime_ns
    stages.calibrate(cfg, layout)
    assert layout.final_catalog.stat().st_mtime_ns == before


def test_the_error_of_a_headers_zero_point_counts():
    with_error = add_magnitudes(sources(), None, BANDS, header_errors={"g": 0.02})
    expected = np.hypot(10, 1000 * np.hypot(0.01, 0.02 / 1.0857362)) * 10 ** (0.4 * (23.9 - 25.0))
    assert np.isclose(with_error.FNUERR_g[0], expected) and with_error.FNUERR_r[0] < expected
    about = about_catalog(with_error, BANDS, None, Config(), {"g": 0.02, "r": 0.0})
    assert about["ZPERR1"] == 0.02 and "ZPERR2" not in about
