"""How exported code looks on its page: entries for functions and classes, constants as they are written.

An entry has the signature, the text of the docstring, and tables of parameters, results, errors and methods.
nbdev takes
`Entries`, `keep_constants` and `link_names` from here (`procs` in settings.ini); this folder must be on the
path then. They
take the place of nbdev's own processors, which run every exported cell again and link any word that is a
function somewhere.
"""

import ast
import enum
import inspect
import re
from collections import Counter
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup

WIDTH = 80


def source_link(symbol) -> str:
    """A link to the lines of its module that define a symbol."""
    config = get_config()
    path = (
        Path(inspect.getsourcefile(symbol))
        .resolve()
        .relative_to(Path(import_module(config.lib_name).__file__).resolve().parent)
    )
    file = f"{config.lib_path.name}/{path.as_posix()}#L{inspect.getsourcelines(symbol)[1]}"
    place = f"{config.git_url}/blob/{config.branch}/{file}"
    return f'[source]({place}){{style="float:right; font-size:smaller"}}\n\n'


def annotation(value) -> str:
    """A type in short: names without their modules."""
    if value is inspect.Parameter.empty:
        return ""
    text = value if isinstance(value, str) else inspect.formatannotation(value)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text).replace("NoneType", "None")


def argument(parameter: inspect.Parameter) -> str:
    """A parameter as it is written in a signature."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(
        parameter.kind, ""
    )
    kind, default = annotation(parameter.annotation), ""
    if parameter.default is not inspect.Parameter.empty:
        value = re.sub(r"<(?:function |class ')?(?:[\w.]*\.)?(\w+)[^>]*>", r"\1", repr(parameter.default))
        default = f" = {value}" if kind else f"={value}"
    return f"{stars}{parameter.name}{': ' + kind if kind else ''}{default}"


def signature(symbol) -> str:
    """The signature of a function or class, on one line if it fits."""
    try:
        given = inspect.signature(symbol)
    except (ValueError, TypeError):
        return symbol.__qualname__
    arguments = [argument(p) for p in given.parameters.values() if p.name != "self"]
    result = annotation(given.return_annotation) if not inspect.isclass(symbol) else ""
    end = f") -> {result}" if result else ")"
    line = f"{symbol.__qualname__}({', '.join(arguments)}{end}"
    return (
        line
        if len(line) <= WIDTH
        else f"{symbol.__qualname__}(\n    " + ",\n    ".join(arguments) + f",\n{end}"
    )


def cell(text: str) -> str:
    """A text that cannot break a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: tuple[str, ...], rows) -> str:
    """A table in Markdown; nothing without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return (
        "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines]) + "\n\n"
        if lines
        else ""
    )


def sections(doc: str) -> tuple[str, dict[str, str]]:
    """The text of a numpydoc docstring, and its sections by name."""
    text, *parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", doc, flags=re.MULTILINE)
    return text.strip(), dict(zip(parts[::2], parts[1::2], strict=True))


def entries(section: str) -> list[tuple[str, str, str]]:
    """Name, type and meaning of what a section lists; an entry without a colon is a type."""
    found = re.findall(r"^(\S.*)\n?((?:^(?: +.*)?\n?)*)", section, re.MULTILINE)
    heads = [(head.partition(" : "), meaning) for head, meaning in found]
    return [(a, b, meaning) if colon else ("", a, meaning) for (a, colon, b), meaning in heads]


def parameter_table(symbol, parameters) -> str:
    """The documented parameters of a function, or fields of a dataclass: type, default and meaning."""
    try:
        known = inspect.signature(symbol).parameters
    except (ValueError, TypeError):
        known = {}
    empty = inspect.Parameter.empty
    defaults = {name: argument(p.replace(annotation=empty)).partition("=")[2] for name, p in known.items()}
    rows = [
        (
            f"`{name or kind}`",
            cell(kind if name else ""),
            f"`{defaults[name].strip()}`" if defaults.get(name) else "",
            cell(text),
        )
        for name, kind, text in parameters
    ]
    return table(("parameter", "type", "default", "meaning"), rows)


def outcome_table(found: dict[str, str]) -> str:
    """What a function returns or yields, and the errors it raises."""
    rows = [
        (word.lower(), cell(f"{name} : {kind}" if name else kind), cell(text))
        for word in ("Returns", "Yields", "Raises")
        for name, kind, text in entries(found.get(word, ""))
    ]
    return table((" ", "what", "meaning, or when"), rows)


def members(kind: type) -> str:
    """Values of an enumeration; else public methods and properties that a class itself explains."""
    if issubclass(kind, enum.Enum):
        return table(("name", "value"), [(f"`{m.name}`", f"`{m.value!r}`") for m in kind])
    own = {
        name: getattr(value, "__func__", value)
        for name, value in vars(kind).items()
        if not name.startswith("_")
    }
    told = {
        name: inspect.getdoc(value)
        for name, value in own.items()
        if isinstance(value, property) or inspect.isfunction(value)
    }
    rows = [
        (
            f'<span id="{kind.__name__}.{name}"></span>'.lower()
            + (f"`{name}`" if isinstance(own[name], property) else f"`{name}()`"),
            cell(text.partition("\n\n")[0]),
        )
        for name, text in told.items()
        if text
    ]
    return table(("method or property", "what it is"), rows)


def explained(symbol) -> str:
    """The signature, docstring and tables of a function or class in Markdown."""
    generated = is_dataclass(symbol) and (symbol.__doc__ or "").startswith(f"{symbol.__name__}(")
    text, found = sections("" if generated else inspect.cleandoc(symbol.__doc__ or ""))
    plain = inspect.isclass(symbol) and issubclass(symbol, enum.Enum | Exception)
    code = "" if plain else f"```python\n{signature(symbol)}\n```\n\n"
    tables = (
        parameter_table(symbol, entries(found.get("Parameters", "")))
        + outcome_table(found)
        + (members(symbol) if inspect.isclass(symbol) else "")
    )
    return f"{code}{text}\n\n{tables}"


class Entries:
    """A processor that fills the cells in which nbdev calls `show_doc` with entries; takes the place of
    exec_show_docs.
    """

    def __init__(self, nb):
        names = [cell.directives_["default_exp"][0] for cell in nb.cells if "default_exp" in cell.directives_]
        self.module = import_module(f"{get_config().lib_name}.{names[0]}") if names else None

    def __call__(self, cell) -> None:
        call = (
            re.search(r"^show_doc\(([\w.]+)\)", cell.source, re.MULTILINE)
            if cell.cell_type == "code"
            else None
        )
        if call:
            symbol = inspect.unwrap(attrgetter(call[1])(self.module))
            text = f"---\n\n{source_link(symbol)}### {symbol.__qualname__}\n\n{explained(symbol)}"
            cell.outputs = [
                {
                    "output_type": "display_data",
                    "metadata": {},
                    "data": {"text/markdown": text.splitlines(keepends=True)},
                }
            ]


def constants(source: str) -> str:
    """The assignments of a cell as they are written; loggers are nobody's business."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    return "\n".join(
        text for node in nodes if not (text := ast.get_source_segment(source, node)).startswith("log = ")
    )


def keep_constants(cell) -> None:
    """Of an exported cell show the constants, for which there is no entry; takes the place of nbdev's
    rm_export.
    """
    if cell.cell_type != "code" or not cell.directives_.keys() & {"export", "exporti", "hide", "default_exp"}:
        return
    shown = constants(cell.source) if "export" in cell.directives_ else ""
    if shown:
        cell.source, cell.outputs = shown, []
    else:
        del cell["source"]


def has_entry(name: str, module: str) -> bool:
    """Whether a function, class or method of a module is offered by it, and so has an entry on its page."""
    return name.partition(".")[0] in getattr(import_module(module), "__all__", ())


@cache
def linked_names() -> NbdevLookup:
    """nbdev's index of this package, of names that have an entry on a page.

    Names that could mean another function, or are plain words such as `summary`, are not among them.
    """
    library = get_config().lib_name
    index = NbdevLookup()
    entries = index.entries[library]["syms"].items()
    offered = {
        full
        for module, symbols in entries
        for full in symbols
        if has_entry(full.removeprefix(f"{module}."), module)
    }
    short = {full: full.removeprefix(f"{module}.") for module, symbols in entries for full in symbols}
    count = Counter(short[full] for full in offered)
    clear = {
        short[full]: full
        for full in offered
        if count[short[full]] == 1 and (short[full] != short[full].lower() or "_" in short[full].strip("_"))
    }
    places = {full: index.syms[full] for full in offered}
    index.syms = places | {name: places[full] for name, full in clear.items()}
    return index


def link_names(cell) -> None:
    """Make links of the names of functions and classes in prose and entries; takes the place of nbdev's
    add_links.
    """
    index = linked_names()
    if cell.cell_type == "markdown":
        cell.source = index.linkify(cell.source)
    for output in cell.get("outputs", []):
        lines = output.get("data", {}).get("text/markdown")
        if lines:
            output["data"]["text/markdown"] = index.linkify("".join(lines)).splitlines(keepends=True)
