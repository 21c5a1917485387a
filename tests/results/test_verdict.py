"""The verdict of the merge: from columns and flags of bands to what may be trusted."""

import numpy as np
import pandas as pd
import pytest

from tract7dt.fit.flags import BandFlag, FitFlag, describe_band_flags
from tract7dt.results.merge import add_verdicts, add_verdicts_by_band, disputed_prior

BANDS = list("griz")


def table(**columns) -> pd.DataFrame:
    "One fitted source in four bands, with `columns` on top."
    rows = {
        "ID": ["a"],
        "excluded_any": False,
        "excluded_reason": "",
        "stype_fit": "exp",
        "fit_flags": 0,
        "psf_fallback_band_count": 0,
        "psf_used_epsf_band_count": 4,
    }
    for band in BANDS:
        rows |= {
            f"FLUX_{band}_fit": 100.0,
            f"FLUXERR_{band}_fit": 1.0,
            f"psf_source_{band}": "band",
            f"psf_eps_pred_{band}": 0.004,
            f"fracmasked_{band}_fit": 0.0,
            f"flags_{band}": 0,
            f"fit_flags_{band}": 0,
        }
    return pd.DataFrame(rows | columns)


@pytest.mark.parametrize("judge", [add_verdicts, add_verdicts_by_band])
def test_nothing_wrong(judge):
    row = judge(table(), BANDS).iloc[0]
    assert row.fit_is_reliable and all(
        row[f"reliable_{band}"] and row[f"flags_{band}"] == 0 for band in BANDS
    )


@pytest.mark.parametrize(
    "column,value,name",
    [
        ("FLUXERR_g_fit", np.inf, "no_data"),
        ("fracmasked_g_fit", 0.6, "masked"),
        ("psf_source_g", "analytic", "analytic_psf"),
        ("psf_eps_pred_g", 0.1, "poor_psf"),
        ("FLUX_g_fit", -8.0, "negative_flux"),
        ("flags_g", int(BandFlag.MISFIT), "misfit"),
        ("flags_g", int(BandFlag.ODD_FLUX), "odd_flux"),
    ],
)
@pytest.mark.parametrize("judge", [add_verdicts, add_verdicts_by_band])
def test_a_fault_of_a_band_is_that_bands(judge, column, value, name):
    row = judge(table(**{column: value}), BANDS).iloc[0]
    assert describe_band_flags(row.flags_g) == name
    assert [bool(row[f"reliable_{band}"]) for band in BANDS] == [False, True, True, True]
    assert row.fit_is_reliable


def test_a_window_that_misses_light():
    "5 % and five errors; single-band fits have a window each."
    row = add_verdicts(table(fracwindow=0.08), BANDS).iloc[0]
    assert describe_band_flags(row.flags_g) == "window_too_small" and not row.fit_is_reliable
    assert add_verdicts(table(fracwindow=0.04), BANDS).fit_is_reliable[0]
    row = add_verdicts_by_band(table(fracwindow_g=0.08), BANDS).iloc[0]
    assert describe_band_flags(row.flags_g) == "window_too_small" and row.reliable_r


@pytest.mark.parametrize("judge", [add_verdicts, add_verdicts_by_band])
def test_two_thirds_of_the_bands_with_data_are_asked_for(judge):
    bad = int(BandFlag.LIGHT_LEFT)
    two = judge(table(flags_g=bad, flags_r=bad), BANDS).iloc[0]
    assert not two.fit_is_reliable and "few_reliable_bands" in two.fit_quality_issues and two.reliable_i
    blind = judge(table(flags_g=bad, FLUXERR_r_fit=np.inf), BANDS).iloc[0]  # two of three with data
    assert blind.fit_is_reliable


def test_what_is_hard_and_what_is_soft():
    for flag in (FitFlag.HIT_MAX_ITERS, FitFlag.BOUND_STALLED, FitFlag.NEAR_UNMODELLED, FitFlag.BLENDED):
        assert add_verdicts(table(fit_flags=int(flag)), BANDS).fit_is_reliable[0]
    for flag in (FitFlag.RUNAWAY, FitFlag.COLLAPSED, FitFlag.DRIFTED, FitFlag.EXTENDED, FitFlag.DEGENERATE):
        row = add_verdicts(table(fit_flags=int(flag)), BANDS).iloc[0]
        assert not row.fit_is_reliable and not any(row[f"reliable_{band}"] for band in BANDS)


def test_a_band_that_ran_away_alone_is_lost_alone():
    row = add_verdicts_by_band(table(fit_flags_g=int(FitFlag.RUNAWAY)), BANDS).iloc[0]
    assert not row.reliable_g and not row.fit_is_reliable_g
    assert row.reliable_r and row.fit_is_reliable and "runaway" in row.fit_quality_issues


def test_priors_that_the_pixels_contradict_are_told():
    "Columns of another program in other units: 2.5 times as large, drawn halfway between."
    light = np.linspace(1000, 3000, 12)
    rows = pd.DataFrame({"FLUX_g_fit": 1.2 * light, "FLUXERR_g_fit": 6.0, "apflux_g": 0.9 * light})
    rows = rows.assign(apflux_resid_g=rows.apflux_g - 0.9 * rows.FLUX_g_fit, FLUX_g_ERR=0.01 * light)
    assert abs(disputed_prior(rows.assign(FLUX_g=2.5 * light), "g") - 0.4) < 0.001
    assert disputed_prior(rows.assign(FLUX_g=1.01 * light), "g") is None
    assert disputed_prior(rows.assign(FLUX_g=2.5 * light)[:4], "g") is None


def test_an_injected_star_without_light_is_absent():
    "A matched row of the user's with the same faint flux is not."
    rows = table(gaia_source_id=["7"], _is_injected_gaia=True, **{f"FLUX_{band}": 4000.0 for band in BANDS})
    row = add_verdicts(rows, BANDS).iloc[0]
    assert not row.fit_is_reliable and row.fit_quality_issues == "absent"
    assert add_verdicts(rows.assign(_is_injected_gaia=False), BANDS).fit_is_reliable[0]
    there = rows.assign(**{f"FLUX_{band}": 150.0 for band in BANDS})
    assert add_verdicts(there, BANDS).fit_is_reliable[0]
