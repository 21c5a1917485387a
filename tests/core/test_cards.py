"""Cards: every class that shows itself says what, and nothing is drawn, or loaded, before it is shown."""

import subprocess
import sys
from pathlib import Path

import pytest

import tract7dt.pipeline.commands  # noqa: F401  (imports every class that has a card)
from tract7dt import plots
from tract7dt.core.cards import Card, card_of


def below(kind: type) -> set[type]:
    """Classes of the package that inherit from one."""
    found = {each for sub in kind.__subclasses__() for each in {sub, *below(sub)}}
    return {each for each in found if each.__module__.startswith("tract7dt.")}


def test_every_class_with_a_card_says_what_is_on_it():
    registered = set(card_of.registry) - {object}
    assert all(issubclass(kind, Card) for kind in registered)
    assert all(
        card_of.dispatch(kind) is not card_of.dispatch(object) for kind in below(Card) if kind.__dict__
    )


def test_modules_of_plots_are_loaded_when_they_are_asked_for():
    folder = Path(plots.__file__).parent
    assert sorted(plots.MODULES) == sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    assert plots.thumbnails.__name__ == "tract7dt.plots.thumbnails"
    with pytest.raises(AttributeError, match="no attribute 'inks'"):
        plots.inks  # noqa: B018


def test_what_shows_nothing_loads_no_matplotlib():
    """Workers that fit import these modules by the hundred."""
    modules = "tract7dt.tile.tile, tract7dt.epsf.grid, tract7dt.patches.fit, tract7dt.results.zero_points"
    program = f"import sys, {modules}; print(sorted({{'matplotlib', 'PIL', 'IPython'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
