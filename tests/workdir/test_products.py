"""Each product is declared once: where it lies, which command makes it, what it is, its columns."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from tract7dt.cli.commands import commands
from tract7dt.workdir.layout import INPUT, MARKS, PRODUCTS, Layout, Product, paths_of, product_paths

LAYOUT = Layout(*(Path("/") / name for name in Layout.__dataclass_fields__))
TABLES = [product for product in PRODUCTS if product.columns]
PACKAGE = Path(find_spec("tract7dt").origin).parent
ROOMS = (
    "core",
    "config",
    "workdir",
    "inputs",
    "tile",
    "patches",
    "results",
    "reports",
    "widgets",
    "epsf",
    "pipeline",
)
READERS = {"reading", "read_json", "read_csv", "read_lines", "damaged", "require_as_written"}
ADDED = {"POS_ERR", "_is_injected_gaia"}  # by the augmentation with Gaia stars, beside the user's columns


def test_every_path_of_a_layout_is_declared():
    """What is no product is a folder."""
    names = {name for name in dir(Layout) if not name.startswith("_")} - {"of", "folders"}
    undeclared = {name for name in names if not isinstance(getattr(Layout, name), Product)}
    places = {name for name in Layout.__dataclass_fields__ if not hasattr(Layout, name)}
    assert undeclared == {name for name in names if name.endswith("_dir")}
    assert all(name.endswith("_dir") for name in places)
    assert [product.name for product in PRODUCTS] == list(dict.fromkeys(p.name for p in PRODUCTS))
    assert {product.name for product in PRODUCTS} == names - undeclared


@pytest.mark.parametrize("product", PRODUCTS, ids=[product.name for product in PRODUCTS])
def test_declaration_is_complete(product):
    assert getattr(Layout, product.name) is product
    assert product.made_by in commands()
    assert product.meaning.endswith(".")
    paths = paths_of(product, LAYOUT, Path("cat.csv"))
    assert paths and all(path.is_relative_to(getattr(LAYOUT, product.key)) for path in paths)
    tables = [path.suffix == ".csv" or product.name == "final_catalog" for path in paths]
    assert all(tables) if product.columns else not any(tables)


def test_a_layout_gives_paths_and_its_class_declarations():
    assert LAYOUT.epsf_summary == Path("/epsf_dir/epsf_summary.json")
    assert LAYOUT.psf_model(band="r") == LAYOUT.psf_model("r") == Path("/epsf_dir/r/psf_model.fits")
    assert (Layout.epsf_summary.made_by, Layout.psf_model.key) == ("run-epsf", "epsf_dir")
    assert LAYOUT.final_catalog == Path("/final_catalog") and Layout.final_catalog.made_by == "merge"


def test_all_products_have_a_place():
    paths = product_paths(LAYOUT, Path("cat.csv"))
    assert set(paths) == set(Layout.__dataclass_fields__)
    assert sum(map(len, paths.values())) >= len(PRODUCTS)
    assert any(mark in str(path) for path in paths["epsf_dir"] for mark in MARKS)


def written(product: Product, layout: Layout, cfg) -> Path:
    """A file of that product which a run wrote."""
    names = {"patch_tag": "r00_c00_pr00_pc00", "input_catalog": cfg.inputs.input_catalog}
    path = getattr(layout, product.name)
    return (
        path if isinstance(path, Path) else path(**{n: v for n, v in names.items() if n in wanted(product)})
    )


def wanted(product: Product) -> tuple[str, ...]:
    """The names that a path of a product is made of."""
    return product.path_of.__code__.co_varnames[: product.path_of.__code__.co_argcount]


@pytest.mark.xdist_group("middle_run")
@pytest.mark.parametrize("product", TABLES, ids=[product.name for product in TABLES])
def test_tables_have_the_columns_that_are_declared(product, middle_run):
    cfg, result = middle_run
    bands = [band.name for band in result.tile.bands]
    found = list(pd.read_csv(written(product, result.layout, cfg), nrows=0).columns)
    declared = [
        c.format(band=b) for c in product.columns if c != INPUT for b in (bands if "{band}" in c else "-")
    ]
    if INPUT not in product.columns:
        assert sorted(declared) == sorted(found)
    else:
        users = set(pd.read_csv(cfg.inputs.input_catalog, nrows=0).columns)
        assert set(declared) <= set(found) and set(found) - set(declared) <= users | ADDED


@pytest.mark.parametrize("room", ROOMS)
def test_readers_take_the_command_from_the_declaration(room):
    """`reading(layout.epsf_summary, Layout.epsf_summary.made_by)`, not the name of the command."""
    calls = [
        (path.name, call)
        for path in sorted((PACKAGE / room).glob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in READERS
    ]
    values = [(name, getattr(value, "value", "")) for name, call in calls for value in call.args]
    assert [(name, value) for name, value in values if value in commands()] == []
