"""Running many patches: an interruption ends it soon, a dead worker is survived; what a catalog and the keys
ask for reaches the fit.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pandas as pd
import pytest
from small_inputs import Field, noise, rows_at

from tract7dt.config.load import config_warnings, load_config, resolve_paths
from tract7dt.config.schema import Config
from tract7dt.core.errors import UserError
from tract7dt.inputs import band as frames
from tract7dt.pipeline import commands as pipeline
from tract7dt.pipeline import run_patches as run
from tract7dt.pipeline.executors import make_pool
from tract7dt.results.merge import read_catalog
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("run")


def test_an_interruption_drops_the_patches_not_yet_begun(monkeypatch):
    begun = []

    def slow_patch(tag, layout, cfg):
        begun.append(tag)
        time.sleep(0.1)

    def interrupted(jobs, **_):
        yield next(iter(jobs))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_patch", slow_patch)
    monkeypatch.setattr(run, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.collect(ThreadPoolExecutor(1), range(50), None, None)
    assert len(begun) < 5


def die_on_the_third(tag, layout, cfg):
    """Stands in for run_patch: one patch kills its worker."""
    if tag == 3:
        os._exit(1)
    return tag


def test_the_patch_that_kills_its_worker_is_found_and_the_others_are_done(monkeypatch):
    cfg = Config(patch_run={"max_workers": 2})
    monkeypatch.setattr(run, "run_patch", die_on_the_third)
    done, raised = run.collect(make_pool(2), range(6), None, cfg)
    assert raised
    more, raised = run.retry_lost(raised, None, cfg)
    assert set(done | more) == {0, 1, 2, 4, 5}
    assert list(raised) == [3] and isinstance(raised[3], BrokenProcessPool)


class BreaksEarly(ThreadPoolExecutor):
    """A pool whose worker dies while patches are still being handed to it."""

    def submit(self, function, *values):
        if values[0] == 3:
            raise BrokenProcessPool("a worker died")
        return super().submit(function, *values)


def test_a_pool_that_breaks_while_it_is_filled_loses_no_patch(monkeypatch):
    monkeypatch.setattr(run, "run_patch", lambda tag, layout, cfg: tag)
    done, raised = run.collect(BreaksEarly(1), range(6), None, None)
    assert set(done) == {0, 1, 2} and set(raised) == {3, 4, 5}


def test_nobody_is_asked_for_another_try_where_none_was_lost(monkeypatch):
    monkeypatch.setattr(run, "fit_workers", lambda settings, tasks: 8)
    monkeypatch.setattr(
        run, "spare_executor", lambda *values: pytest.fail("an executor was started for nothing")
    )
    failure = UserError("a damaged payload")
    assert run.retry_lost({"a": failure}, None, Config()) == ({}, {"a": failure})


# A field of two bands that GalSim drew: stars and galaxies under a Moffat PSF, which is also the fallback
# that the fit uses
# where, as here, no ePSF can be built.

PLACES = {
    "bright": (30.0, 30.0),
    "faint": (80.0, 95.0),
    "moved": (130.0, 30.0),
    "round": (40.0, 85.0),
    "oval": (120.0, 85.0),
}
FLUXES = {"bright": 9000.0, "faint": 150.0, "moved": 3000.0, "round": 12000.0, "oval": 12000.0}


def scene(shape=(120, 160)):
    """Sky-free image of all sources; the galaxies are exponential with a half-light radius of 4 pixels, the
    oval one twice as long as wide.
    """
    galsim = pytest.importorskip("galsim")
    psf, image = galsim.Moffat(beta=3.5, fwhm=3.0), galsim.ImageD(shape[1], shape[0])
    for name, (x, y) in PLACES.items():
        light = (
            galsim.Exponential(half_light_radius=4) if name in ("round", "oval") else galsim.DeltaFunction()
        )
        light = light.shear(q=0.5, beta=30 * galsim.degrees) if name == "oval" else light
        profile = (
            galsim.Convolve(light, psf).withFlux(FLUXES[name])
            if name in ("round", "oval")
            else psf.withFlux(FLUXES[name])
        )
        profile.drawImage(
            image, center=galsim.PositionD(x + 1, y + 1), method="no_pixel", scale=1, add_to_image=True
        )
    return image.array


PSF_ISSUES = "all_psf_fallback,analytic_psf,analytic_psf_in_band,few_reliable_bands"
"All that may be held against sources of a scene with too few stars for an ePSF."


@pytest.fixture(scope="module")
def light():
    return scene()


def small_field(folder, light, offsets=None, **columns):
    """The scene with noise in two bands, and a catalog with the columns given by source name."""
    field, offsets = Field(folder), offsets or {}
    for i, band in enumerate(field.bands):
        field.image(band, (light + noise(i)).astype("f4"), SATURATE=1e6)
    places = [np.add(place, offsets.get(name, (0, 0))) for name, place in PLACES.items()]
    table = rows_at(places).assign(
        ID=list(PLACES), TYPE=["EXP" if name in ("round", "oval") else "STAR" for name in PLACES]
    )
    for column, values in columns.items():
        table[column] = [values.get(name, np.nan) for name in PLACES]
    field.catalog(table)
    return field


def fitted(field, **sections):
    """The final catalog of a run, indexed by ID, and the configuration."""
    quick = dict(
        epsf=dict(epsf_ngrid=1, ngrid=1, parallel_bands=False),
        plotting=dict(dpi=20),
        bright_mask=dict(enabled=False),
        overlay=dict(enabled=False),
    )
    plain = dict(max_workers=1, no_cutouts=True, no_patch_overview=True)
    cfg = resolve_paths(
        field.cfg(**quick | sections | dict(patch_run=plain | sections.get("patch_run", {}))), field.folder
    )
    assert pipeline.run(cfg).ok
    return read_catalog(cfg.outputs.final_catalog).set_index("ID"), cfg


@pytest.fixture(scope="module")
def plain_fit(light, tmp_path_factory):
    """The scene without priors, with start values that are off."""
    field = small_field(
        tmp_path_factory.mktemp("plain"),
        light,
        {"moved": (1.5, 0)},
        Re={"round": 8.0, "oval": 4.0},
        ELL={"round": 0.0, "oval": 0.0},
        THETA={"round": 0.0, "oval": 0.0},
    )
    return fitted(field)


def test_without_priors_the_pixels_decide(plain_fit):
    rows, _ = plain_fit
    for name, (x, _) in PLACES.items():
        assert abs(rows.FLUX_m400_fit[name] - FLUXES[name]) < 4 * rows.FLUXERR_m400_fit[name]
        assert abs(rows.x_pix_white_fit[name] - x) < 4 * rows.x_pix_err_fit[name]
    assert (
        abs(rows.Re_fit["round"] - 4) < 0.2
        and abs(rows.ELL_fit["oval"] - 0.5) < 0.05
        and abs(rows.THETA_fit["oval"] - 30) < 4
    )
    assert (rows.fit_quality_issues == PSF_ISSUES).all()


def test_error_columns_hold_what_they_name(light, tmp_path):
    """A Gaussian prior much tighter than the data keeps the catalog's value: a flux in one band only, a
    place, a size, a shape.

    The sigmas are tiny because the pixels are weighted with the noise of the sky, under which the bright
    sources here have S/N 600 and more.
    """
    field = small_field(
        tmp_path,
        light,
        {"moved": (0.7, 0)},
        FLUX_m400={"faint": 600.0},
        FLUX_m400_ERR={"faint": 0.5},
        FLUX_m425={"faint": 600.0},
        POS_ERR={"moved": 1e-4},
        Re={"round": 8.0, "oval": 4.0},
        Re_ERR={"round": 0.001},
        ELL={"oval": 0.1, "round": 0.0},
        THETA={"oval": -20.0, "round": 0.0},
        ELL_ERR={"oval": 1e-4},
        THETA_ERR={"oval": 0.01},
    )
    rows, cfg = fitted(field)
    assert abs(rows.FLUX_m400_fit["faint"] - 600) < 5
    assert abs(rows.FLUX_m425_fit["faint"] - FLUXES["faint"]) < 4 * rows.FLUXERR_m425_fit["faint"]
    assert abs(rows.x_pix_white_fit["moved"] - PLACES["moved"][0] - 0.7) < 0.05
    assert abs(rows.Re_fit["round"] - 8) < 0.2
    assert abs(rows.ELL_fit["oval"] - 0.1) < 0.02 and abs(rows.THETA_fit["oval"] + 20) < 2
    log = Layout.of(cfg.outputs).patch_log("r00_c00_pr00_pc00").read_text()
    assert "priors on 1 positions, 1 sizes, 1 ellipticities, 1 fluxes" in log


def test_a_source_that_may_not_move_far_enough_says_so(light, tmp_path, plain_fit):
    field = small_field(tmp_path, light, {"moved": (1.5, 0)})
    held, _ = fitted(field, patch_run=dict(pos_max_shift_pix=0.8))
    assert (
        held.flag_bound_stalled_which_parameter["moved"] == "pos.x@lower" and held.flag_bound_stalled["moved"]
    )
    assert "bound_stalled" in held.fit_quality_issues["moved"]
    assert (held.fit_quality_issues.drop("moved") == PSF_ISSUES).all()


def test_null_frees_positions(light, tmp_path):
    """A start 6 pixels off is out of reach within 5 (0.7.0 took null for 5); a galaxy of this size finds its
    way.
    """
    field = small_field(tmp_path, light, {"round": (6.0, 0)}, Re={"round": 4.0})
    held, _ = fitted(field)
    free, _ = fitted(field, patch_run=dict(pos_max_shift_pix=None))
    assert held.flag_bound_stalled["round"]
    assert (
        not free.flag_bound_stalled["round"] and abs(free.x_pix_white_fit["round"] - PLACES["round"][0]) < 0.2
    )


def test_stages_change_no_result_and_the_record_tells_the_truth(light, tmp_path):
    field = small_field(tmp_path, light)
    staged, cfg = fitted(field)
    meta = Layout.of(cfg.outputs).patch_meta("r00_c00_pr00_pc00")
    with_stages = json.loads(meta.read_text())
    joint, _ = fitted(field, patch_run=dict(enable_staged_fit=False))
    pd.testing.assert_frame_equal(staged, joint)
    assert with_stages["staged_fit_enabled"] is True and [
        stage["frozen"] for stage in with_stages["staged_fit_stages"]
    ] == ["none"]
    assert with_stages["staged_fit_stages"][0]["niters"] == with_stages["opt_niters"]
    assert not {"staged_fit_enabled", "staged_fit_stages"} & set(json.loads(meta.read_text()))


@pytest.mark.parametrize("margin", (0, 5))
def test_a_source_that_ran_out_of_iterations_is_flagged_at_every_margin(light, tmp_path, margin):
    field = small_field(tmp_path, light, {"moved": (1.5, 0)})
    rows, _ = fitted(field, patch_run=dict(n_opt_iters=1, flag_maxiter_margin=margin))
    assert rows.opt_hit_max_iters["moved"] and "hit_max_iters" in rows.fit_quality_issues["moved"]
    assert (rows.opt_hit_max_iters == ~rows.opt_converged).all()


def test_keys_without_effect_make_no_noise_and_no_difference(light, tmp_path, plain_fit):
    """Keys of 0.7.0 that nothing here can use are silent, and leave a finished fit finished."""
    field = small_field(tmp_path, light)
    first, cfg = fitted(field)
    again = cfg.model_copy(
        update={
            "patch_run": cfg.patch_run.model_copy(
                update=dict(r_ap=9.0, eps_flux=1.0, flag_maxiter_margin=3, resume=True)
            )
        }
    )
    assert config_warnings(again) == []
    assert all(done.skipped for done in pipeline.run_patches(again).fits.done.values())


def test_a_picture_that_an_earlier_fit_did_not_draw_is_drawn_when_it_is_asked_for(light, tmp_path, caplog):
    """Resuming ends with all that a new run would make; then there is nothing left to do."""
    _, cfg = fitted(small_field(tmp_path, light))
    again = cfg.model_copy(
        update={"patch_run": cfg.patch_run.model_copy(update=dict(resume=True, no_patch_overview=False))}
    )
    caplog.set_level("INFO", "tract7dt.pipeline.run_patches")
    made = pipeline.run_patches(again)
    assert (
        not any(done.skipped for done in made.fits.done.values())
        and "fitted: its pictures are missing" in caplog.text
    )
    assert all(made.layout.patch_overview(tag).exists() for tag in made.fits.done)
    assert all(done.skipped for done in pipeline.run_patches(again).fits.done.values())


def test_pictures_of_other_settings_are_drawn_again(light, tmp_path, caplog):
    """Those that are asked for; the resolution of pictures that nobody wants changes nothing."""
    field = small_field(tmp_path, light)
    _, cfg = fitted(
        field, patch_run=dict(no_cutouts=False, cutout_max_sources=1, cutout_size=20, resume=True)
    )
    other = cfg.model_copy(update={"patch_run": cfg.patch_run.model_copy(update=dict(cutout_max_sources=3))})
    caplog.set_level("INFO", "tract7dt.pipeline.run_patches")
    made = pipeline.run_patches(other)
    assert "its pictures are of other settings: patch_run.cutout_max_sources was 1, is 3" in caplog.text
    assert all(len(list(made.layout.cutouts_dir(tag).glob("*.png"))) == 3 for tag in made.fits.done)
    assert all(done.skipped for done in pipeline.run_patches(other).fits.done.values())
    unseen = other.patch_run.model_copy(update=dict(no_cutouts=True, cutout_size=30))
    finer = other.model_copy(
        update={"patch_run": unseen, "plotting": other.plotting.model_copy(update=dict(dpi=25))}
    )
    assert all(done.skipped for done in pipeline.run_patches(finer).fits.done.values())


def test_a_picture_that_cannot_be_drawn_is_no_reason_to_fit_again(light, tmp_path, monkeypatch):
    _, cfg = fitted(small_field(tmp_path, light))
    again = cfg.model_copy(
        update={"patch_run": cfg.patch_run.model_copy(update=dict(resume=True, no_patch_overview=False))}
    )
    monkeypatch.setattr(
        "tract7dt.pipeline.pictures.overview_sheet",
        lambda *values: (_ for _ in ()).throw(ValueError("no pixels")),
    )
    assert all("no pixels" in done.picture_problem for done in pipeline.run_patches(again).fits.done.values())
    assert all(done.skipped for done in pipeline.run_patches(again).fits.done.values())


def test_merge_reads_no_image(plain_fit, monkeypatch):
    rows, cfg = plain_fit
    before = cfg.outputs.final_catalog.read_bytes()
    monkeypatch.setattr(frames.FitsImage, "section", lambda *a: pytest.fail("the merge read pixels"))
    pipeline.merge(cfg)
    assert cfg.outputs.final_catalog.read_bytes() == before


def test_merge_loads_the_inputs_again_when_what_was_kept_is_of_other_settings(plain_fit):
    _, cfg = plain_fit
    layout, before = Layout.of(cfg.outputs), cfg.outputs.final_catalog.read_bytes()
    kept = json.loads(layout.tile_state.read_text())
    layout.tile_state.write_text(json.dumps(kept | {"fingerprint": "of another configuration"}))
    layout.tile_catalog.write_text("ID\nnonsense\n")
    pipeline.merge(cfg)
    assert cfg.outputs.final_catalog.read_bytes() == before
    assert json.loads(layout.tile_state.read_text()) == kept


@pytest.mark.parametrize("suffix", (".csv", ".ecsv", ".fits", ".parquet"))
def test_identifiers_stay_text_in_every_format(light, tmp_path, suffix):
    """IDs that look like numbers or missing values, and Gaia ids of 19 digits, through run and the zero
    points.
    """
    names, source = ["00019", "NA", "null", "1e5", "-"], "3836071735830392412"
    field = small_field(tmp_path, light)
    table = pd.read_csv(tmp_path / "cat.csv").assign(ID=names)
    field.catalog(table)
    magnitude = 25 - 2.5 * np.log10(FLUXES["bright"])
    field.gaia(
        pd.DataFrame(
            dict(
                ra=table.RA[:1],
                dec=table.DEC[:1],
                source_id=[source],
                phot_g_mean_mag=[16.0],
                mag_m400=[magnitude],
                mag_m425=[magnitude],
            )
        )
    )
    final = tmp_path / f"final{suffix}"
    rows, cfg = fitted(
        field,
        zp=dict(enabled=True, min_box_size_pix=1000),
        outputs=dict(work_dir=str(tmp_path / "work"), final_catalog=str(final)),
    )
    assert list(rows.index) == names
    assert list(rows.gaia_source_id) == [source, "", "", "", ""]
    assert abs(rows.MAG_m400_fit.iloc[0] - magnitude) < 1e-6


def test_the_snapshot_is_the_configuration_in_effect(plain_fit):
    _, cfg = plain_fit
    text = sorted(cfg.outputs.work_dir.glob("config_used_*.yaml"))[0]
    assert text.read_text().startswith("# Configuration in effect, tract7dt ")
    assert load_config(text).model_dump() == cfg.model_dump()


def test_options_of_the_engine_are_keys_with_its_defaults(light, tmp_path, plain_fit):
    """The defaults are written once; groups of two cut the field into pieces, which agree with the whole,
    because these
    sources lie too far apart to share light: what differs is the sky, known to much less than 0.3 sigma of a
    star.
    """
    from tract7dt.config.schema import PatchRun
    from tract7dt.fit.problem import FitOptions
    from tract7dt.patches.problem import fit_options

    assert fit_options(PatchRun()) == FitOptions()
    changed = fit_options(PatchRun(max_group=7, ignore_unmodelled=False, covariance=True))
    assert (changed.max_group, changed.ignore_unmodelled, changed.covariance) == (7, False, True)
    pieces, _ = fitted(small_field(tmp_path, light), patch_run=dict(max_group=2))
    whole = plain_fit[0]
    assert (abs(pieces.FLUX_m400_fit - whole.FLUX_m400_fit) < 0.3 * whole.FLUXERR_m400_fit).all()
