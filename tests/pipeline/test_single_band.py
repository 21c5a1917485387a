"""Each band fitted alone: columns, values, verdicts and zero points band by band."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from conftest import ROOT

from tract7dt.core.columns import MAG_COLUMNS, SOLUTION_COLUMNS, expand, final_columns, fit_columns
from tract7dt.fit.flags import FitFlag
from tract7dt.inputs.gaia_table import load_gaia
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.payload import read_payload
from tract7dt.patches.problem import load_psfs
from tract7dt.pipeline import pictures
from tract7dt.results.merge import add_verdicts_by_band, read_catalog
from tract7dt.results.zero_points import solve_zero_points
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("middle_run")
BANDS = ("m500", "m650", "m750")


@pytest.fixture(scope="module")
def catalog(alone_run):
    cfg, _ = alone_run
    return read_catalog(cfg.outputs.final_catalog)


@pytest.fixture(scope="module")
def layout(alone_run):
    return Layout.of(alone_run[0].outputs)


@pytest.fixture(scope="module")
def patch(alone_run, layout):
    cfg, result = alone_run
    payload = read_payload(layout.payload(sorted(result.fits.done)[0]))
    return fit_patch(payload, load_psfs(payload, layout, cfg), cfg)


def test_columns_carry_their_band_and_no_others_are_there(catalog):
    names = [c.name for c in fit_columns(BANDS, together=False) + final_columns(BANDS, together=False)]
    names += [column.name for column in expand(MAG_COLUMNS, BANDS)]
    assert list(catalog.columns[-len(names) :]) == names
    shared = {c.name for c in SOLUTION_COLUMNS} - {"fit_flags"}
    assert not shared & set(catalog)


def test_the_columns_of_one_band_are_those_of_070_in_its_order(catalog):
    old = """x_pix_patch_{}_fit y_pix_patch_{}_fit x_pix_white_{}_fit y_pix_white_{}_fit RA_{}_fit
        DEC_{}_fit sersic_n_{}_fit re_pix_{}_fit
             ab_{}_fit phi_deg_{}_fit Re_{}_fit ELL_{}_fit THETA_{}_fit FLUX_{}_fit FLUXERR_{}_fit
             opt_niters_{} opt_converged_{}
             opt_hit_max_iters_{} opt_last_dlnp_{} flag_bound_stalled_{}
             flag_bound_stalled_which_parameter_{}"""
    expected = [name.format(band) for band in sorted(BANDS) for name in old.split()]
    assert [name for name in catalog if name in expected] == expected


@pytest.mark.parametrize("band", BANDS)
def test_stars_have_their_fluxes_and_places_in_every_band(catalog, band):
    """Bright stars: each band alone finds flux and place. 2 % is what few stars of one cell make of the ePSF;
    places agree within errors.
    """
    truth, scale = (
        Table.read(ROOT / "sample_data/truth.ecsv").to_pandas(),
        Table.read(ROOT / "sample_data/truth_bands.ecsv").to_pandas(),
    )
    rows = catalog.merge(
        truth[["ID", "RA", "DEC", "kind", f"FLUX_{band}", f"SNR_{band}"]], on="ID", suffixes=("", "_true")
    )
    rows = rows[
        (rows.kind == "STAR")
        & (rows[f"SNR_{band}"] > 50)
        & rows[f"fit_is_reliable_{band}"].fillna(False).astype(bool)
    ]
    true = rows[f"FLUX_{band}_true"] * scale.set_index("band").flux_scale[band]
    assert len(rows) >= 8
    assert abs(np.median(rows[f"FLUX_{band}_fit"] / true - 1)) < 0.02
    assert np.median(np.abs(rows[f"DEC_{band}_fit"] - rows.DEC_true)) * 3600 < 0.05


def test_bands_move_apart(catalog):
    """Positions really are each band's own: no two bands agree to the last digit."""
    x = catalog[[f"x_pix_white_{band}_fit" for band in BANDS]].dropna()
    assert len(x) > 50 and (x.nunique(axis=1) == len(BANDS)).all()


def test_the_record_of_a_patch(alone_run, layout):
    meta = json.loads(layout.patch_meta(sorted(alone_run[1].fits.done)[0]).read_text())
    assert meta["enable_multi_band_simultaneous_fitting"] is False
    assert list(meta["staged_fit_stages_by_band"]) == list(BANDS)
    assert "opt_niters" not in meta and "staged_fit_stages" not in meta


def test_the_order_of_the_images_does_not_mix_up_bands(patch, alone_run, layout):
    """0.7.0 paired models in sorted order with data in the order of the list."""
    turned = replace(patch.payload, bands=patch.payload.bands[::-1])
    other = fit_patch(turned, load_psfs(turned, layout, alone_run[0]), alone_run[0])
    pd.testing.assert_frame_equal(other.sources, patch.sources)
    assert (other.model[::-1] == patch.model).all()


def test_the_pictures_of_a_patch(patch, alone_run, layout, tmp_path):
    cfg = alone_run[0].model_copy(
        update={
            "patch_run": alone_run[0].patch_run.model_copy(
                update={"no_patch_overview": False, "no_cutouts": False, "cutout_max_sources": 2}
            )
        }
    )
    drawn = replace(layout, tractor_out_dir=tmp_path)
    assert pictures.draw_patch(patch, cfg, drawn) == ""
    assert drawn.patch_overview(patch.payload.patch.tag).exists()
    assert len(list(drawn.cutouts_dir(patch.payload.patch.tag).glob("src_*.png"))) == 2


def test_one_bad_band_leaves_the_zero_points_of_the_others(catalog, alone_run):
    """0.7.0 removed a star that failed in one band from the zero points of all."""
    cfg, gaia = alone_run[0], load_gaia(alone_run[0].inputs.gaiaxp_synphot_csv, BANDS)
    bad = catalog.assign(fit_flags_m650=catalog.fit_flags_m650.fillna(0) | int(FitFlag.RUNAWAY))
    bad = add_verdicts_by_band(bad, BANDS)
    before, after = (solve_zero_points(table, gaia, BANDS, cfg.zp).bands for table in (catalog, bad))
    assert set(before) == set(BANDS) and set(after) == {"m500", "m750"}
    assert all(before[band].zp == after[band].zp for band in after)
    fitted = bad.stype_fit.ne("")
    assert not bad.fit_is_reliable_m650[fitted].any() and bad.fit_is_reliable_m500[fitted].mean() > 0.9
    assert bad.fit_is_reliable[fitted].mean() > 0.8  # two bands of three are fine
    assert bad.fit_quality_issues[fitted].str.contains("runaway").all()


def test_verdicts_are_those_of_the_flags(catalog):
    fitted = catalog[catalog.stype_fit != ""]
    enough = np.sum([fitted[f"reliable_{band}"] for band in BANDS], axis=0) >= 2
    some = ~fitted.fit_quality_issues.str.contains("no_data_in_band|bright_mask")
    assert (fitted.fit_is_reliable[some] == enough[some]).all()
    assert enough.mean() > 0.9
