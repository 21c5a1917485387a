"""What the house asks of its rooms, counted: python tools/house.py [ROOM ...] [--write]

Prints figures and, for the rooms that are named, each place that falls short; `--write` notes the present
public names. `tests/house/test_house.py` holds the limits.
"""

import ast
import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, PACKAGE = ROOT / "nbs", ROOT / "tract7dt"
PUBLIC_NAMES = ROOT / "tests" / "data" / "public_names.txt"

ORDER = (
    ("core",),
    ("fit", "workdir", "cli", "sample"),
    ("inputs", "config"),
    ("plots",),
    ("tile",),
    ("epsf",),
    ("patches",),
    ("results",),
    ("pipeline", "widgets"),
    ("reports",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
NEVER = {"plots": {"tile", "epsf", "patches"}, "widgets": {"pipeline"}}
ENGINES = ("fit.engine", "fit.tractor.engine")

MOST_LINES = 40  # of an exported cell
MOST_DEFINITIONS = 2  # functions and classes in an exported cell
MOST_IN_A_ROW = 8  # exported cells with definitions before an example must come
MANY_PARAMETERS = 4  # from here on each is explained
TABLES: dict[str, list[str]] = {  # large cells that are declarations, row by row
    "fit.flags": ["FLAGS = (: 100 lines"],
    "core.columns": ["SOLUTION_COLUMNS = _columns(: 41 lines"],
    "config.schema": ["Inputs: 83 lines", "Epsf: 122 lines", "PatchRun: 171 lines", "Zp: 46 lines"],
}


# ---- modules and what they import


def modules() -> dict[str, ast.Module]:
    """The modules of the package by their name without `tract7dt.`; those at its top are the front door."""
    paths = [
        p for p in sorted(PACKAGE.rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py", "__main__.py")
    ]
    names = {p: ".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in paths}
    return {names[p]: ast.parse(p.read_text(encoding="utf-8")) for p in paths}


def imported(name: str, node: ast.ImportFrom, known) -> list[str]:
    """The modules of the package that an import statement of the module `name` reads."""
    if node.level:
        base = ".".join([*name.split(".")[: -node.level], *([node.module] if node.module else [])])
    elif (node.module or "").startswith("tract7dt."):
        base = node.module.removeprefix("tract7dt.")
    else:
        return []
    return [found for alias in node.names for found in [f"{base}.{alias.name}", base] if found in known][
        :1
    ] or [base]


def imports() -> dict[str, set[str]]:
    """Which modules of the package each module imports, inside functions too."""
    trees = modules()
    graph = defaultdict(set)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                graph[name] |= {found for found in imported(name, node, trees) if found != name and found}
    return graph


def forbidden(graph: dict[str, set[str]]) -> list[str]:
    """Imports against the order of the rooms."""
    found = []
    for name, others in graph.items():
        room = name.partition(".")[0]
        for other in sorted(others):
            there = other.partition(".")[0]
            against = there != room and LEVEL[there] >= LEVEL[room]
            against |= there in NEVER.get(room, ())
            against |= room == "fit" and there != "fit" and other != "core.errors"
            against |= name in ENGINES and other in ENGINES
            found += [f"{name} imports {other}"] if against else []
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, if there is one."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        found = next((c for other in sorted(graph.get(name, ())) if (c := walk(other, [*way, name]))), [])
        done.add(name)
        return found

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def public_names() -> list[str]:
    """What modules offer: the names in their `__all__`, with the module."""
    found = []
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                found += [f"{name}.{symbol}" for symbol in ast.literal_eval(node.value)]
    return sorted(found)


# ---- notebooks


@dataclass
class Notebook:
    """A notebook that exports a module."""

    path: Path
    module: str
    cells: list[dict] = field(repr=False)

    @property
    def room(self) -> str:
        """The room it is in."""
        return self.module.partition(".")[0]

    @cached_property
    def code(self) -> list[tuple[str, str, ast.Module]]:
        """Kind (`export`, `exporti`, `example` or `hidden`), source and tree of each code
        cell but the first.
        """
        found = []
        for cell in self.cells:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or source.startswith("#| default_exp"):
                continue
            kind = re.match(r"#\|\s*(exporti|export|hide)\b", source)
            plain = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE)
            tree = ast.parse(plain)
            only_imports = all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)
            name = kind[1] if kind and kind[1] != "hide" else "hidden" if kind and only_imports else "example"
            found.append((name, source, tree))
        return found


def notebooks() -> list[Notebook]:
    """The notebooks that export a module, in reading order."""
    found = []
    for path in sorted(NBS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        names = [m[1] for c in cells if (m := re.match(r"#\|\s*default_exp (\S+)", "".join(c["source"])))]
        found += [Notebook(path, names[0], cells)] if names else []
    return found


def definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes at the top of a cell."""
    return [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def words(tree: ast.AST) -> set[str]:
    """Names and attributes that a cell uses."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def public_definitions(notebook: Notebook) -> list[str]:
    """Functions and classes that a notebook offers."""
    return [
        node.name
        for kind, _, tree in notebook.code
        if kind == "export"
        for node in definitions(tree)
        if not node.name.startswith("_")
    ]


def not_shown(notebook: Notebook) -> list[str]:
    """Functions and classes that a notebook offers and none of its example cells uses."""
    used = set().union(*(words(tree) for kind, _, tree in notebook.code if kind == "example"))
    return [name for name in public_definitions(notebook) if name not in used]


def large_cells(notebook: Notebook) -> list[str]:
    """Exported cells with more than 40 lines or two definitions."""
    found = []
    for kind, source, tree in notebook.code:
        if not kind.startswith("export"):
            continue
        lines, inside = len(source.splitlines()) - 1, definitions(tree)
        title = inside[0].name if inside else source.splitlines()[1]
        found += [f"{title}: {lines} lines"] if lines > MOST_LINES else []
        found += [f"{title}: {len(inside)} definitions in a cell"] if len(inside) > MOST_DEFINITIONS else []
    return found


def without_example(notebook: Notebook) -> list[str]:
    """Runs of more than eight exported cells without an example."""
    found, row, first = [], 0, ""
    for kind, _, tree in [*notebook.code, ("example", "", ast.Module([], []))]:
        if kind == "example":
            found += [f"{row} exported cells in a row, from {first}"] if row > MOST_IN_A_ROW else []
            row = 0
        elif kind.startswith("export") and (inside := definitions(tree)):
            row, first = row + 1, first if row else inside[0].name
    return found


def parameters(function: ast.FunctionDef) -> list[str]:
    """The parameters of a function but `self` and `cls`."""
    a = function.args
    names = [p.arg for p in [*a.posonlyargs, *a.args, *a.kwonlyargs]]
    names += [p.arg for p in (a.vararg, a.kwarg) if p]
    return [name for name in names if name not in ("self", "cls")]


def explains(function: ast.FunctionDef, source: str) -> bool:
    """Whether each parameter is explained: with a comment of its own in the signature, or in
    the docstring.
    """
    doc = ast.get_docstring(function) or ""
    part = re.search(r"Parameters\n-{3,}\n(.*?)(?:\n\n\w[\w ]*\n-{3,}|\Z)", doc, re.DOTALL)
    listed = (
        set(re.findall(r"\w+", " ".join(re.findall(r"^(\*{0,2}\w[^:\n]*)", part[1], re.MULTILINE))))
        if part
        else set()
    )
    lines = source.splitlines()[function.lineno - 1 : function.body[0].lineno - 1]
    commented = {m[1] for line in lines if (m := re.match(r"\s*\*{0,2}(\w+)\b.*#\s*\S", line))}
    return set(parameters(function)) <= listed | commented


def functions(notebook: Notebook) -> list[tuple[ast.FunctionDef, str]]:
    """Functions and methods of exported cells, with the source of the cell."""
    found = []
    for kind, source, tree in notebook.code:
        if kind.startswith("export"):
            tops = [*tree.body, *(n for c in tree.body if isinstance(c, ast.ClassDef) for n in c.body)]
            found += [(node, source) for node in tops if isinstance(node, ast.FunctionDef)]
    return found


def unexplained(notebook: Notebook) -> list[str]:
    """Functions with four parameters or more that do not explain each of them."""
    many = [(f, source) for f, source in functions(notebook) if len(parameters(f)) >= MANY_PARAMETERS]
    return [f.name for f, source in many if not explains(f, source)]


def figures() -> dict[str, str]:
    """The figures of the house."""
    books, graph = notebooks(), imports()
    offered = sum(len(public_definitions(book)) for book in books)
    many = sum(len(parameters(f)) >= MANY_PARAMETERS for book in books for f, _ in functions(book))
    shown = offered - sum(len(not_shown(book)) for book in books)
    explained = many - sum(len(unexplained(book)) for book in books)
    return {
        "modules at the top": str(sum("." not in name for name in modules())),
        "public names": str(len(public_names())),
        "public definitions shown in their notebook": f"{shown} of {offered} ({shown / offered:.0%})",
        "functions of four parameters or more that explain them": f"{explained} of {many} "
        f"({explained / many:.0%})",
        "exported cells that are too large": str(sum(len(large_cells(book)) for book in books)),
        "long runs without an example": str(sum(len(without_example(book)) for book in books)),
        "imports against the order": str(len(forbidden(graph))),
        "circle": " > ".join(circle(graph)) or "none",
    }


def main(rooms: list[str]) -> None:
    """Print the figures, and what the rooms fall short of."""
    if "--write" in rooms:
        PUBLIC_NAMES.write_text("\n".join(public_names()) + "\n")
    for name, value in figures().items():
        print(f"{name}: {value}")
    for book in notebooks():
        if book.room not in rooms and book.module not in rooms:
            continue
        for title, complaints in (
            ("not shown", not_shown(book)),
            ("large", large_cells(book)),
            ("rows", without_example(book)),
            ("unexplained", unexplained(book)),
        ):
            if complaints:
                print(f"{book.path.relative_to(NBS)}: {title}: {', '.join(complaints)}")


if __name__ == "__main__":
    main(sys.argv[1:])
