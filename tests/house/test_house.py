"""The house: who may know whom, what is public, notebooks that show what they define, parameters that are
explained.
"""

import importlib.resources
import pkgutil
import subprocess
import sys

import house
import pytest
import type_check

import tract7dt

BOOKS = house.notebooks()


def test_each_room_imports_only_rooms_left_of_it():
    assert house.forbidden(house.imports()) == []


def test_no_circle_of_imports():
    assert house.circle(house.imports()) == []


def test_a_wrong_import_would_be_found():
    graph = {
        "core.logs": {"config.schema"},
        "fit.psf": {"core.columns"},
        "widgets.run": {"pipeline.commands"},
        "a": {"b"},
        "b": {"a"},
    }
    assert len(house.forbidden({name: graph[name] for name in ("core.logs", "fit.psf", "widgets.run")})) == 3
    assert house.circle(graph) == ["a", "b", "a"]


def test_no_module_lies_at_the_top():
    assert [name for name in house.modules() if "." not in name] == []


def test_public_names_are_listed():
    """`python tools/house.py --write` notes them; whoever adds one sees it in the request."""
    noted = house.PUBLIC_NAMES.read_text().split()
    assert house.public_names() == noted and len(noted) < 500


def test_what_is_defined_is_shown():
    offered = sum(len(house.public_definitions(book)) for book in BOOKS)
    missing = [f"{book.module}.{name}" for book in BOOKS for name in house.not_shown(book)]
    assert offered > 300 and len(missing) < 0.15 * offered, missing


@pytest.mark.parametrize("book", BOOKS, ids=[book.module for book in BOOKS])
def test_one_idea_a_cell(book):
    assert house.large_cells(book) == house.TABLES.get(book.module, [])
    assert house.without_example(book) == []


@pytest.mark.parametrize("book", BOOKS, ids=[book.module for book in BOOKS])
def test_many_parameters_are_explained(book):
    assert house.unexplained(book) == []


def test_front_door_offers_what_it_says():
    rooms = {module.name for module in pkgutil.iter_modules(tract7dt.__path__)}
    for name in tract7dt.__all__:
        assert getattr(tract7dt, name).__doc__ and name in tract7dt.__doc__ and name not in rooms, name
    with pytest.raises(AttributeError, match="help\\(tract7dt\\)"):
        _ = tract7dt.fit_everything
    assert set(tract7dt.__all__) <= set(dir(tract7dt))


def test_front_door_has_all_commands():
    from tract7dt.cli.commands import commands

    assert {name.replace("-", "_") for name in commands()} <= set(tract7dt.__all__)


def test_front_door_costs_nothing():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, tract7dt; print(sorted({'numpy', 'astropy', 'pandas'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
    )
    assert said.stdout == "[]\n"


def test_package_is_typed():
    assert importlib.resources.files("tract7dt").joinpath("py.typed").is_file()


def test_ruff_has_no_complaint():
    for words in (["check", "-q"], ["format", "--check", "-q"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words], cwd=house.ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_type_checker_complains_no_more_than_before():
    found, most = type_check.complaints(), int(type_check.NOTED.read_text())
    assert len(found) <= most, "\n".join(found)
