"""A configuration of version 0.7.0, every key spelled out, runs unchanged and gives everything that version
gave.
"""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from astropy.io import fits
from astropy.table import Table

from tract7dt.core.columns import (
    BAND_COLUMNS,
    FINAL_COLUMNS,
    GRADIENT_COLUMNS,
    MAG_COLUMNS,
    PATCH_COLUMNS,
    SOLUTION_COLUMNS,
    STATE_COLUMNS,
    all_columns,
    expand,
)
from tract7dt.results.merge import read_catalog

pytestmark = pytest.mark.xdist_group("compat")

BANDS = ("m400", "m500", "m575", "m650", "m750", "m850")
OLD = (Path(__file__).parents[1] / "data" / "config_070.yaml").read_text()
FOR_THE_TILE = {
    "path/to/input_catalog.csv": "catalog.csv",
    "path/to/image_list.txt": "images.txt",
    "path/to/gaiaxp_synphot.csv": "gaia_xp.csv",
    "path/to/work_dir": "work",
    "margin: 500": "margin: 150",
    "[4000, 5000, 4000, 5000]": "[100, 400, 100, 400]",
    "epsf_ngrid: 7": "epsf_ngrid: 1",
    "ngrid: 6": "ngrid: 2",
}
CELL_FILES = """meta.json psfstars.png psfstars_bgsub.png background_diagnostics.png epsf.npy
epsf.png epsf_growth_curve.png
    epsf_residual_diagnostics.png star_local_background_diagnostics.png extracted_stars.png used_stars.png"""
FIELD_FILES = """wcs.fits output_catalog.csv run.log cropped_images/white_before_crop.png
cropped_images/white_after_crop.png
    overlay/white_overlay.png overlay/white_overlay_zoom.png bright_mask/white_bright_mask.fits
    bright_mask/white_bright_mask_overlay.png
    EPSFs/epsf_summary.json patches/patches.csv patches/patches.json outputs/run_summary.csv
    ZP/catalog_with_Gaia.csv
    ZP/gaia_augmentation_overlay.png ZP/zp_summary.csv ZP/zp_all_bands__per_object.csv"""
PATCH_FIELDS = """patch_tag epsf_tag epsf_r epsf_c patch_r patch_c halo_pix base_bbox roi_bbox
n_sources n_halo_sources
    psf_min_epsf_nstars_for_use psf_used_epsf_band_count psf_fallback_band_count
    psf_low_star_band_count psf_fallback_bands psf_low_star_bands
    psf_frozen_bands_for_optimizer psf_audit enable_multi_band_simultaneous_fitting opt_niters
    opt_converged opt_hit_max_iters opt_last_dlnp
    staged_fit_enabled staged_fit_stages"""
CELL_FIELDS = """band patch x0 x1 y0 y1 epsf_ngrid psfstar_mode gaia_snap_to_sep gaia_mag_min
gaia_mag_max nstars_seed nstars_sel nstars_extract
    nstars_used nstars_fitfail epsf_shape status error patch_background local_star_background
    local_bkg_diagnostics epsf_qa residual_qa cfg"""
FIT_COLUMNS = """excluded_crop excluded_saturation excluded_any gaia_source_id excluded_reason
affected_by_bright_mask x_pix_white y_pix_white
    x_pix_patch y_pix_patch patch_tag epsf_tag psf_min_epsf_nstars_for_use psf_used_epsf_band_count
    psf_fallback_band_count
    psf_low_star_band_count psf_fallback_bands psf_low_star_bands psf_frozen_bands_for_optimizer
    psf_fallback_reasons_json stype_fit
    opt_niters opt_converged opt_hit_max_iters opt_last_dlnp flag_bound_stalled
    flag_bound_stalled_which_parameter x_pix_patch_fit
    y_pix_patch_fit x_pix_white_fit y_pix_white_fit RA_fit DEC_fit sersic_n_fit re_pix_fit Re_fit
    ab_fit phi_deg_fit ELL_fit THETA_fit
    fit_is_reliable fit_quality_issues"""
BAND_FIT_COLUMNS = "FLUX_{}_fit FLUXERR_{}_fit MAG_{}_fit MAGERR_{}_fit"


@pytest.fixture(scope="module")
def folder(program, fresh_sample):
    folder, text = fresh_sample("compat"), OLD
    for old, new in FOR_THE_TILE.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "config.yaml").write_text(text)
    done = program("run", "--config", folder / "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def work(folder):
    return folder / "work"


@pytest.fixture(scope="module")
def catalog(work):
    return read_catalog(work / "output_catalog.csv")


@pytest.fixture(scope="module")
def patches(work):
    return list(pd.read_csv(work / "outputs/run_summary.csv").patch)


def no_token(token):
    raise ValueError(f"{token} is no JSON")


def missing(folder, names):
    return [name for name in names if not (folder / name).is_file() or (folder / name).stat().st_size == 0]


def test_the_old_file_has_every_old_key():
    def leaves(value):
        return sum(map(leaves, value.values())) if isinstance(value, dict) else 1

    assert leaves(yaml.safe_load(OLD)) == 155


def test_products_of_the_field(work):
    assert not missing(work, FIELD_FILES.split())
    assert len(list(work.glob("config_used_*.yaml"))) == 1


def test_products_of_every_band_and_cell(work):
    for band in BANDS:
        assert not missing(work / "EPSFs" / band / "r00_c00", CELL_FILES.split()), band
        assert not missing(work / "EPSFs" / band, ["psf_model.fits"])
        assert not missing(work / "ZP", [f"zp_vs_mag__{band}.png", f"zp_vs_mag__{band}_fullrange.png"])


def test_products_of_every_patch(work, patches):
    assert len(patches) == 4
    for tag in patches:
        assert not missing(
            work / "outputs" / tag,
            [f"{tag}_cat_fit.csv", "meta.json", f"{tag}.log", f"{tag}.runner.log", "patch_overview.png"],
        )
        assert (work / "patch_payloads" / f"{tag}.fits.gz").exists()


def test_every_source_of_a_patch_has_its_montage(work, patches):
    for tag in patches:
        own = set(pd.read_csv(work / "outputs" / tag / f"{tag}_cat_fit.csv", dtype={"ID": str}).ID)
        drawn = {
            path.stem.removeprefix("src_") for path in (work / "outputs" / tag / "cutouts").glob("src_*.png")
        }
        assert own <= drawn and any(name.startswith("halo_") for name in drawn - own)


def test_nothing_else_is_left_behind(work):
    assert not [path for path in work.rglob(".*")]


def test_the_catalog_has_the_old_columns_and_only_declared_ones(folder, catalog):
    expected = FIT_COLUMNS.split() + [
        name.format(band) for band in BANDS for name in BAND_FIT_COLUMNS.split()
    ]
    assert not set(expected) - set(catalog)
    users = list(pd.read_csv(folder / "catalog.csv", nrows=1).columns)
    solution = PATCH_COLUMNS + SOLUTION_COLUMNS + GRADIENT_COLUMNS
    groups = (STATE_COLUMNS, solution, BAND_COLUMNS, FINAL_COLUMNS, MAG_COLUMNS)
    declared = [column.name for group in groups for column in expand(group, BANDS)]
    assert [name for name in catalog if name in declared] == declared
    added = {"POS_ERR", *(f"FLUX_{band}" for band in BANDS)}
    assert set(catalog) - set(declared) - set(users) <= added


def test_no_value_is_in_the_wrong_row_or_of_the_wrong_kind(folder, catalog):
    given = pd.read_csv(folder / "catalog.csv", dtype=str, keep_default_na=False)
    assert list(catalog.ID[: len(given)]) == list(given.ID)
    kinds = {"float": "float64", "int": "Int64", "bool": "boolean", "text": "str"}
    for column in all_columns(BANDS):
        if column.name in catalog:
            assert catalog[column.name].dtype == kinds[column.kind], column.name


def test_units_and_descriptions_travel(folder, program):
    """The same catalog as ECSV, by the merge command alone; every declared column says what it is and in
    which unit.
    """
    text = (folder / "config.yaml").read_text().replace("output_catalog.csv", "output_catalog.ecsv")
    (folder / "ecsv.yaml").write_text(text)
    for command in ("merge", "compute-zp"):
        done = program(command, folder / "ecsv.yaml")
        assert done.returncode == 0, done.stderr
    table = Table.read(folder / "work/output_catalog.ecsv")
    written = {"scaled counts": "ct", "scaled counts/pix": "ct / pix", "": "None"}
    for column in all_columns(BANDS):
        if column.name in table.colnames:
            assert str(table[column.name].unit) == written.get(column.unit, column.unit), column.name
            assert table[column.name].description == column.description


def test_merge_and_zero_points_afterwards_change_nothing(folder, program, work):
    before = (work / "output_catalog.csv").read_bytes()
    for command in ("merge", "compute-zp"):
        assert program(command, folder / "config.yaml").returncode == 0
    assert (work / "output_catalog.csv").read_bytes() == before


def test_json_is_json(work):
    files = list(work.rglob("*.json"))
    assert len(files) >= 1 + 1 + 6 + 4
    for path in files:
        json.loads(path.read_text(), parse_constant=no_token)


def test_fields_of_records(work, patches):
    for tag in patches:
        meta = json.loads((work / "outputs" / tag / "meta.json").read_text())
        assert not set(PATCH_FIELDS.split()) - set(meta)
        assert set(meta["psf_audit"]) == set(BANDS) and meta["staged_fit_enabled"] is True
        for stage in meta["staged_fit_stages"]:
            assert {"stage", "frozen", "niters", "converged", "last_dlnp"} == set(stage)
    for band in BANDS:
        assert not set(CELL_FIELDS.split()) - set(
            json.loads((work / "EPSFs" / band / "r00_c00/meta.json").read_text())
        )
    summary = json.loads((work / "EPSFs/epsf_summary.json").read_text())
    assert [cell["band"] for cell in summary] == sorted(BANDS)


@pytest.mark.parametrize(
    "name, columns",
    [
        (
            "patches/patches.csv",
            "epsf_r epsf_c patch_r patch_c epsf_tag patch_tag x0_base x1_base y0_base y1_base x0_roi "
            "x1_roi y0_roi y1_roi halo_pix source",
        ),
        ("outputs/run_summary.csv", "patch status returncode sec runner_log"),
        (
            "ZP/zp_summary.csv",
            "band n_raw n_kept n_clipped n_unreliable clip_sigma zp_median zp_err_mad zp_err_std "
            "n_zp_err_src zp_err_snr_used",
        ),
        (
            "ZP/zp_all_bands__per_object.csv",
            "band gaia_source_id gaiaxp_mag flux fluxerr zp zp_err is_kept is_clipped",
        ),
    ],
)
def test_columns_of_tables(work, name, columns):
    assert not set(columns.split()) - set(pd.read_csv(work / name, nrows=1).columns)


def test_images_are_fits(work):
    mask = fits.open(work / "bright_mask/white_bright_mask.fits")
    assert mask[0].data.dtype == "uint8" and mask[0].header["EXTNAME"] == "BRIGHT_MASK"
    assert fits.getheader(work / "wcs.fits")["CTYPE1"].startswith("RA")
    mask.close()
