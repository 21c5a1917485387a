"""Widgets of ours leave the names of ipywidgets alone: a method `open` of ours once kept a widget from ever
being displayed.
"""

import ast
import inspect
import pkgutil
import textwrap
from importlib import import_module

import ipywidgets
import pytest
import traitlets

import tract7dt

THEIRS = ("ipywidgets", "traitlets")
MEANT = {
    "__init__": "takes what the widget is about, and calls theirs",
    "children": "the trait that says what a box shows; set, not replaced",
    "value": "the trait that says what an image or a text shows; set, not replaced",
}


def names_of(cls: type) -> set[str]:
    """Names that the source of a class binds: in its body, and on `self` in its methods."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    bound = {
        node.id
        for part in body.body
        if isinstance(part, (ast.Assign, ast.AnnAssign, ast.AugAssign))
        for node in ast.walk(part)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    defined = {
        part.name
        for part in body.body
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    on_self = {
        node.attr
        for node in ast.walk(body)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return bound | defined | on_self


def taken(cls: type) -> set[str]:
    """Names of the classes of ipywidgets and traitlets among the ancestors of a class, and of their
    instances.
    """
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in THEIRS]
    return set().union(*(set(vars(base)) | names_of(base) for base in bases))


def clashes(cls: type) -> set[str]:
    """Names of theirs that a class, or one of its ancestors that is not theirs, binds without meaning to."""
    own = [
        base for base in cls.__mro__ if base is not object and base.__module__.partition(".")[0] not in THEIRS
    ]
    return set().union(*map(names_of, own)) & taken(cls) - set(MEANT)


def descendants(cls: type):
    for each in cls.__subclasses__():
        yield each
        yield from descendants(each)


def widget_classes() -> dict[str, type]:
    """Every class of the package that is one of theirs, by name."""
    for module in pkgutil.walk_packages(tract7dt.__path__, "tract7dt."):
        import_module(module.name)
    return {
        cls.__qualname__: cls
        for cls in descendants(traitlets.HasTraits)
        if cls.__module__.partition(".")[0] == "tract7dt"
    }


def test_no_name_of_ipywidgets_is_overridden():
    found = {name: clashes(cls) for name, cls in widget_classes().items()}
    assert {"RunInspector", "Inspector", "EPSFInspector", "Picture", "ClickGrid", "SpotPicture"} <= set(found)
    assert {name: names for name, names in found.items() if names} == {}, (
        "rename them, or say in MEANT why they may be overridden"
    )


class Mixin:
    """An ancestor that is no widget, and overrides all the same."""

    def send(self):
        """As `Widget.send`, which it hides."""


class Clashing(Mixin, ipywidgets.VBox):
    """Every way to take a name; `title` and `fine` are nobody's."""

    keys, fine = (), ()
    box_style: str = ""

    def open(self):
        """As `Widget.open`, which it hides."""
        self.title, self.comm = "", None
        for self._model_id in ():
            pass


def test_every_way_to_override_a_name_is_seen():
    assert clashes(Clashing) == {"send", "keys", "box_style", "open", "comm", "_model_id"}


@pytest.mark.parametrize("name", [name for name in MEANT if name != "__init__"])
def test_a_name_that_may_be_set_is_a_trait(name):
    """Setting a trait is what traits are for; traitlets refuses what does not fit it."""
    with pytest.raises(traitlets.TraitError):
        setattr({"children": ipywidgets.VBox, "value": ipywidgets.HTML}[name](), name, object())
