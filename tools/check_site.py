"""What is wrong with the documentation site: pages without a place in the sidebar, broken links, loads from
the network,
exported symbols without an entry or a docstring."""

import ast
import importlib
import inspect
import pkgutil
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import tract7dt


class Page(HTMLParser):
    """What a page offers to links, where it links to, what it loads, and its words."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.ids, self.links, self.loads, self.words = path, set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        target = given.get("href") or given.get("src")
        if target and tag in ("a", "area"):
            self.links.append(target)
        elif target:
            self.loads.append(target)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@cache
def pages(site: Path) -> dict[Path, Page]:
    """The pages of a site by their path."""
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def not_in_the_sidebar(notebooks: Path) -> list[str]:
    """Notebooks that the sidebar does not list, or not once, and what it lists and is not there."""
    listed = re.findall(r"- (\S+\.ipynb)", (notebooks / "sidebar.yml").read_text(encoding="utf-8"))
    there = {
        str(path.relative_to(notebooks))
        for path in notebooks.rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }
    odd = [name for name in sorted({*listed, *there}) if listed.count(name) != 1 or name not in there]
    return [
        (
            f"nbs/sidebar.yml: {name} is listed {listed.count(name)} times and "
            f"{'is' if name in there else 'is not'} there"
        )
        for name in odd
    ]


def broken_links(site: Path) -> list[str]:
    """Links and loads within the site that lead nowhere."""
    found = []
    for path, page in pages(site).items():
        for target in [*page.links, *page.loads]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            base = site if parts.path.startswith("/") else path.parent
            file = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            anchor = unquote(parts.fragment)
            gone = not file.exists() or (
                anchor
                and file.suffix == ".html"
                and anchor not in pages(site)[site / file.relative_to(site.resolve())].ids
            )
            found += [f"{path.relative_to(site)}: the link to {target} leads nowhere"] if gone else []
    return found


def network_loads(site: Path) -> list[str]:
    """What pages and styles load from elsewhere."""
    loads = [
        (path, load)
        for path, page in pages(site).items()
        for load in page.loads
        if re.match(r"(https?:)?//", load)
    ]
    styles = [
        (path, load)
        for path in site.rglob("*.css")
        for load in re.findall(
            r"(?:@import |url\()[\"']?((?:https?:)?//[^\"')]+)", path.read_text(encoding="utf-8")
        )
    ]
    return [f"{path.relative_to(site)}: loads {load}" for path, load in [*loads, *styles]]


def modules() -> list[str]:
    """The modules of the package that notebooks export."""
    return [
        m.name
        for m in pkgutil.walk_packages(tract7dt.__path__, "tract7dt.")
        if not m.ispkg and not m.name.endswith("._modidx")
    ]


def page_of(module: str) -> str | None:
    """The page that documents a module, as nbdev's index has it."""
    symbols = importlib.import_module("tract7dt._modidx").d["syms"].get(module, {})
    return next((anchor.partition("#")[0] for anchor, _ in symbols.values()), None)


def defined(module) -> set[str]:
    """The functions and classes that a module defines; all else in it is a constant."""
    tree = ast.parse(inspect.getsource(module))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def own_docstring(value) -> str:
    """The docstring that was written for a function or class; not the one that dataclasses make."""
    text = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    return "" if not text or text.startswith(f"{value.__name__}(") else text


def undocumented(site: Path) -> list[str]:
    """Exported functions and classes that lack a docstring or an entry on their page, and constants that it
    does not show.
    """
    found = []
    for name in modules():
        module, page = importlib.import_module(name), page_of(name)
        entries, here = defined(module), pages(site).get(site / page) if page else None
        for symbol in getattr(module, "__all__", ()):
            if symbol in entries and not own_docstring(getattr(module, symbol)):
                found.append(f"{name}.{symbol}: has no docstring")
            if here and (symbol.lower() not in here.ids if symbol in entries else symbol not in here.text):
                found.append(f"{name}.{symbol}: is not on {page}")
    return found


def half_documented() -> list[str]:
    """Functions whose docstring lists parameters that they do not have."""
    found = []
    for name in modules():
        module = importlib.import_module(name)
        for symbol in getattr(module, "__all__", ()):
            value = getattr(module, symbol)
            if inspect.isfunction(value):
                part = re.search(
                    r"^Parameters\n-+\n((?:(?!\w[\w ]*\n-{3}).*\n?)*)",
                    inspect.getdoc(value) or "",
                    re.MULTILINE,
                )
                listed = {
                    n.strip("* ")
                    for line in re.findall(r"^(\S[^:\n]*) :", part[1] if part else "", re.MULTILINE)
                    for n in line.split(",")
                }
                strange = sorted(listed - set(inspect.signature(value).parameters))
                found += (
                    [f"{name}.{symbol}: its docstring has parameters that it lacks: {', '.join(strange)}"]
                    if strange
                    else []
                )
    return found


def complaints(notebooks: Path, site: Path) -> list[str]:
    """Everything that is wrong, a line each."""
    return [
        *not_in_the_sidebar(notebooks),
        *broken_links(site),
        *network_loads(site),
        *undocumented(site),
        *half_documented(),
    ]
