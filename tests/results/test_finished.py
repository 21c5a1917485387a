"""A finished run is one thing: whoever looks at one reads its products through `FinishedRun`."""

import ast
import inspect
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tract7dt.core.errors import UserError
from tract7dt.core.geometry import make_cells
from tract7dt.core.reading import Damaged
from tract7dt.reports import page as report_page
from tract7dt.results import model_images
from tract7dt.results.finished import (
    FinishedRun,
    base_box,
    hull,
    moved,
    open_bands,
    open_run,
    require_patches,
)
from tract7dt.results.merge import read_catalog
from tract7dt.widgets.base import Inspector
from tract7dt.widgets.patch import PatchInspector
from tract7dt.widgets.source import SourceInspector
from tract7dt.workdir.manifest import Manifest

pytestmark = pytest.mark.xdist_group("middle_run")
PACKAGE = Path(inspect.getfile(FinishedRun)).parents[1]
USERS = ("results", "reports", "widgets")
READERS = {"read_csv", "read_json", "read_catalog", "getdata", "read_table", "read_bands", "open_bands"}


def trees(*rooms):
    return {
        f"{path.parent.name}.{path.stem}": ast.parse(path.read_text(encoding="utf-8"))
        for room in rooms
        for path in sorted((PACKAGE / room).glob("*.py"))
    }


def calls(node) -> set[str]:
    "Names of the functions that are called in a piece of code."
    called = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    return {f.id if isinstance(f, ast.Name) else getattr(f, "attr", "") for f in called}


def classes(tree):
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def test_only_the_finished_run_reads_products():
    """No other class of rooms that look at runs opens a product, or holds a configuration with a layout."""
    reading, holding = set(), set()
    for name, tree in trees(*USERS).items():
        for cls in classes(tree):
            fields = {n.target.id for n in cls.body if isinstance(n, ast.AnnAssign)}
            reading |= (
                {f"{name}.{cls.name}"} if calls(cls) & (READERS | {"read_cells", "read_index"}) else set()
            )
            holding |= {f"{name}.{cls.name}"} if {"cfg", "layout"} <= fields else set()
    assert holding == {"results.finished.RunInputs"}
    assert reading == {f"results.finished.{name}" for name in ("RunInputs", "RunPatches", "FinishedRun")}


@pytest.mark.parametrize("product", ["patches_csv", "run_summary", "epsf_summary", "bright_mask_fits"])
def test_what_all_share_is_read_in_one_place(product):
    """In the rooms that look at runs; the ePSF inspector alone knows more of epsf_summary.json."""
    found = {
        name
        for name, tree in trees(*USERS).items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and calls(function) & READERS
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == product
    }
    assert found - {"widgets.epsf"} == {"results.finished"}


def test_one_name_one_thing():
    names = [
        node.name
        for tree in trees(*USERS, "patches", "pipeline").values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    for gone in ("Run", "Leftovers", "read_patches", "band_names"):
        assert gone not in names
    for one in ("FinishedRun", "open_bands", "open_band", "patch_of", "patch_from_row"):
        assert names.count(one) == 1, one


def test_the_three_users_take_it():
    for function in (
        model_images.draw_strip,
        model_images.write_band,
        report_page.page,
        *report_page.SECTIONS.values(),
    ):
        assert "FinishedRun" in str(inspect.signature(function).parameters["run"].annotation)
    assert "open_run" in inspect.getsource(Inspector)


def test_it_has_the_products(middle_run):
    cfg, result = middle_run
    run = open_run(result)
    assert type(run) is FinishedRun
    pd.testing.assert_frame_equal(run.catalog, read_catalog(result.layout.final_catalog))
    assert run.catalog is run.catalog and run.bands is run.bands and run.patches is run.patches
    assert [band.name for band in run.bands] == run.band_names == ["m500", "m650", "m750"]
    assert run.frame == result.tile.shape and run.bright_mask.shape == run.frame
    assert list(run.zero_points["band"]) == list(result.zero_points.bands)
    assert set(run.outcomes["status"]) == {"ok"} and {cell["band"] for cell in run.cells} == set(
        run.band_names
    )
    assert list(run.index["ID"]) == list(run.catalog["ID"])


def test_its_patches_are_those_that_were_built(middle_run):
    cfg, result = middle_run
    run = FinishedRun(cfg, result.layout)
    assert run.patches == {patch.tag: patch for patch in result.patches}
    assert [base_box(row) for _, row in run.patch_table.iterrows()] == [
        patch.base for patch in result.patches
    ]
    assert hull(run.patch_table) == make_cells(run.frame, 1)[0].box
    require_patches(run, run.catalog)
    with pytest.raises(UserError, match="no patch r09, which the final catalog names"):
        require_patches(run, run.catalog.assign(patch_tag="r09"))


def test_a_list_of_patches_that_is_damaged_is_named_with_its_cure(middle_run, tmp_path):
    cfg, result = middle_run
    run = FinishedRun.of(moved(cfg, tmp_path))
    run.layout.patches_csv.parent.mkdir()
    run.layout.patches_csv.write_text(result.layout.patches_csv.read_text().replace(",0,", ",x,"))
    with pytest.raises(Damaged, match="patches.csv: damaged .* run tract7dt build-patches again"):
        _ = run.patches


def test_it_follows_its_folder(middle_run, tmp_path):
    """Products are looked for where the work directory is now."""
    cfg, result = middle_run
    shutil.copytree(cfg.outputs.work_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("*.png", "*.gz"))
    run = open_run(tmp_path / "copy")
    assert run.layout.final_catalog.is_relative_to(tmp_path)
    pd.testing.assert_frame_equal(run.patch_table, open_run(cfg).patch_table)
    assert FinishedRun.of(moved(cfg, tmp_path / "copy")).has_other_catalog is False
    path = run.layout.final_catalog
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    assert open_run(tmp_path / "copy").has_other_catalog is True


def test_nothing_is_read_before_it_is_asked_for(middle_config, monkeypatch):
    """But for the manifest, so that one that is damaged is known at once."""
    cfg = middle_config()
    run = FinishedRun.of(cfg)
    assert set(vars(run)) == {"cfg", "layout", "manifest"}
    assert run.manifest == Manifest()
    assert run.catalog is run.zero_points is run.calibrators is run.outcomes is None
    assert run.cells == [] and run.band_names == [] and run.index.empty


def test_a_reason_stands_for_images_that_are_gone(middle_run, tmp_path):
    cfg, result = middle_run
    inputs = cfg.inputs.model_copy(update={"image_list_file": tmp_path / "gone.txt"})
    run = FinishedRun(cfg.model_copy(update={"inputs": inputs}), result.layout)
    assert run.images[0] == () and "gone.txt" in run.images[1]
    with pytest.raises(UserError, match="gone.txt"):
        open_bands(run.cfg)
    assert len(run.catalog) == len(result.catalog), "the rest of the run stands"


def test_inspectors_and_report_see_the_same(middle_run):
    cfg, result = middle_run
    run = open_run(cfg)
    patches, sources = PatchInspector(run), SourceInspector(run)
    assert patches.run is sources.run is run
    assert patches.patches is run.patch_table and sources.index is run.index
    rows = dict(report_page.source_counts(run.catalog))
    assert rows["measured"] == np.count_nonzero(run.index["stype_fit"] != "")
