"""The building blocks of the benchmarks run, on very small problems; nothing here is timed."""

import importlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tract7dt.core.logs import stage
from tract7dt.fit.engine import fit
from tract7dt.fit.footprints import Footprint
from tract7dt.fit.problem import Kind
from tract7dt.fit.render import Window

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    "Import a module of the benchmarks."
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        monkeypatch.setenv(name, "1")
    return importlib.import_module


def test_same_seed_same_field(bench):
    make = bench("scene").make_problem
    one, two, other = make(3, 2, seed=3), make(3, 2, seed=3), make(3, 2, seed=4)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one.bands, two.bands))
    assert not np.array_equal(one.bands[0].image, other.bands[0].image)
    assert one.shape == (bench("scene").field_size(3),) * 2


def test_standard_field_has_the_standard_size(bench):
    assert bench("scene").field_size(30) == 230


def test_operations_of_a_source_are_those_of_the_formula(bench):
    footprint = Footprint(Window(0, 37, 0, 37), 18, 55, 18, 18, 0)
    rendering = 4 * 5 * 37 * 55 * 28 + 4 * 6 * 37**2 * 28
    assert bench("roofline").rendering_flops(Kind.EXP, footprint) == rendering
    assert bench("roofline").pair_flops([Kind.EXP], [footprint], 0, 0) == 36 * 37**2
    assert (
        bench("roofline").rendering_flops(Kind.EXP, footprint, light=True)
        == 4 * 37 * 55 * 28 + 4 * 37**2 * 28
    )
    assert bench("roofline").pair_flops([Kind.EXP], [footprint], 0, 0, light=True) == 12 * 37**2


def test_only_what_moved_is_credited(bench):
    """Every source at the start; then as many moves as the result counts, those with the derivatives kept at
    the light rate.
    """
    problem, roofline = bench("scene").make_problem(6, 2), bench("roofline")
    result = fit(problem)
    work, once = roofline.work_of(problem, result), roofline.one_evaluation(problem)
    assert work.full + work.light == pytest.approx(1 + result.niters.mean())
    assert work.plain > once.plain * work.full > 1.5 * once.flops
    assert work.light > 0 and once.flops < work.flops < (1 + result.niters.max()) * once.flops
    still = fit(replace(problem, options=replace(problem.options, max_iters=0)))
    assert roofline.work_of(
        replace(problem, options=replace(problem.options, max_iters=0)), still
    ).flops == pytest.approx(once.flops)


def test_a_row_of_the_table(bench):
    row = bench("engine").measure(3, 2, seeds=1, repeats=1)
    assert row.work.flops > 0 and row.work.full >= 1 and row.work.light >= 0 and row.megabytes > 0
    assert row.text(peak=100).split()[:2] == ["3", "2"]


def test_one_evaluation(bench):
    problem, roofline = bench("scene").make_problem(3, 2), bench("roofline")
    assert len(roofline.evaluation_seconds(problem, repeats=1)) == 2
    assert roofline.one_evaluation(problem).flops > roofline.one_evaluation(problem).rendering > 0


def test_fitted_exponent_of_a_power_law(bench):
    assert bench("measure").fitted_exponent([1, 2, 8], [3, 12, 192]) == pytest.approx(2)


@pytest.mark.parametrize("fixed", [False, True])
def test_photutils_measures_the_same_stars(bench, fixed):
    rates = bench("peer").compare(4, fixed, repeats=1)
    assert len(rates) == 3
    assert max(rate.difference for rate in rates) < 1


def test_profile_accounts_for_all_the_time_once(bench):
    problem, profiling = bench("scene").make_problem(3, 1), bench("profiling")
    own = profiling.profile(lambda: fit(problem))
    assert min(own.values()) > -1e-6 and ("render", "render_stack") in own
    assert "Gram products" in profiling.report(own)


def test_stages_are_read_from_the_log(bench):
    pipeline, logger = bench("pipeline"), logging.getLogger("tract7dt.benchmark")
    clock = pipeline.StageClock()
    logger.addHandler(clock)
    logger.setLevel(logging.INFO)
    with stage("load", logger):
        logger.info("a message: not a stage")
    with stage("fit", logger):
        pass
    logger.removeHandler(clock)
    assert [use.name for use in pipeline.merged(clock.uses)] == ["load", "fit", "between"]
    assert pipeline.merged(clock.uses)[0].megabytes > 1
