"""Every message that the program can print, collected from its source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path


@dataclass(frozen=True)
class Message:
    """A text that users may read.

    Parameters
    ----------
    kind : {error, warning}
        An error ends the command with exit code 2, a warning goes to the log.
    text : str
        The message with a name in braces for each value.
    module, function : str
        Where it comes from.
    """

    kind: str
    text: str
    module: str
    function: str

    @property
    def cure(self) -> str:
        "What to do, or what is done about it: what follows the first semicolon that is not within brackets."
        return split_cure(self.text)[1]

    @property
    def problem(self) -> str:
        "What is wrong, and where."
        return split_cure(self.text)[0]


def split_cure(text: str) -> tuple[str, str]:
    "A message before and after the first semicolon that stands outside brackets and braces."
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == ";" and depth == 0:
            return text[:place], text[place + 1 :].strip()
    return text, ""


OF_LAST = ("map", "shown")
OF_FIRST = (
    "list_some",
    "str",
    "show",
    "repr",
    "sorted",
    "safe_name",
    "count_rows",
    "reason",
    "type",
    "tuple",
    "list",
    "set",
    "next",
    "iter",
)
METHODS = ("split", "splitlines", "strip", "upper", "lower", "tolist", "min", "max", "index")


def value_name(node: ast.expr) -> str:
    "A word for the value of an expression, to stand in a message."
    match node:
        case (
            ast.Name(id=name)
            | ast.Attribute(attr=name)
            | ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(name)), *_])
        ):
            return name.strip("_")
        case ast.Constant(value=value) | ast.Subscript(slice=ast.Constant(value=str(value))):
            return str(value)
        case ast.Call(func=ast.Name(id="len") | ast.Attribute(attr="sum" | "count")):
            return "number"
        case (
            ast.Call(func=ast.Attribute(attr=name), args=[of])
            | ast.Call(func=ast.Attribute(attr=name, value=of))
        ) if name in ("join", *METHODS):
            return value_name(of)
        case ast.Call(func=ast.Name(id=name), args=[of, *_]) if name in OF_FIRST:
            return value_name(of)
        case ast.Call(func=ast.Name(id=name), args=[*_, of]) if name in OF_LAST:
            return value_name(of)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name.strip("_")
        case (
            ast.Subscript(value=of)
            | ast.GeneratorExp(elt=of)
            | ast.BinOp(left=of)
            | ast.IfExp(body=of)
            | ast.BoolOp(values=[of, *_])
        ):
            return value_name(of)
    return "value"


def part_of(node: ast.expr, known: dict[str, ast.stmt]) -> str:
    "A piece of a formatted text: as it is, the text of a constant of the module, or the name of its value."
    match node:
        case ast.Constant(value=text):
            return text
        case ast.FormattedValue(value=ast.Name(id=name)) if isinstance(known.get(name), ast.Assign):
            return "".join(templates(known[name].value, known)) or f"{{{name}}}"
    return f"{{{value_name(node.value)}}}"


def templates(node: ast.expr, known: dict[str, ast.stmt]) -> list[str]:
    """The texts that an expression may become, given the definitions of its module; none if that is decided
    elsewhere.
    """
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(part_of(part, known) for part in parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            sides = [templates(side, known) or [f"{{{value_name(side)}}}"] for side in (left, right)]
            return ["".join(pair) for pair in product(*sides)]
        case ast.Call(func=ast.Name(id="one_line"), args=[of]):
            return templates(of, known)
        case ast.IfExp(body=yes, orelse=no):
            return templates(yes, known) + templates(no, known)
        case ast.Call(func=ast.Name(id=name)) if isinstance(known.get(name), ast.FunctionDef):
            returns = [
                n.value for n in ast.walk(known[name]) if isinstance(n, ast.Return) and n.value is not None
            ]
            return [text for value in returns for text in templates(value, known)]
    return []


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    "The functions and constants of a module by name."
    constants = {
        node.targets[0].id: node
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return constants | {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


ERRORS = ("UserError", "NotWritten", "Damaged", "Unreadable")
FINDINGS = ("findings.add", "self.add")
NOTES = {
    "problems.error": "error",
    "problems.warn": "warning",
    "log.warning": "warning",
    "log.error": "warning",
    "notes.append": "warning",
}


def logged(call: ast.Call, known) -> list[str]:
    "The texts of a call of the log, the names of its values in place of %s and its like."

    def filled(text: str) -> str:
        names = iter(f"{{{value_name(value)}}}" for value in call.args[1:])
        return re.sub(r"%[-+.\d]*[sdrfg]", lambda found: next(names, found[0]), text)

    return [filled(text) for text in templates(call.args[0], known)]


def said_by(call: ast.Call, known) -> list[tuple[str, str]]:
    "Kind and text of the messages that a call makes, if it is one that does."
    name = ast.unparse(call.func)
    if name in ERRORS and call.args:
        return [("error", text) for text in templates(call.args[0], known)]
    if name == "not_read":
        return [("error", f"{{path}}: {text}") for text in templates(call.args[2], known) if text]
    if name in FINDINGS and len(call.args) > 1:
        return [
            ("error", f"{{file}} line {{line}}: {{key}}{text}") for text in templates(call.args[1], known)
        ]
    if name in NOTES:
        return [(NOTES[name], text) for text in logged(call, known)]
    return []


def returned_warnings(function: ast.FunctionDef, known) -> list[tuple[str, str]]:
    "Kind and text of what a function of warnings puts together."
    return [
        ("warning", text)
        for node in ast.walk(function)
        if isinstance(node, ast.JoinedStr)
        for text in templates(node, known)
        if ";" in text
    ]


def scopes(tree: ast.Module) -> list[tuple[str, ast.FunctionDef]]:
    "Functions and methods of a module with their names."
    found = [("", node) for node in tree.body] + [
        (f"{c.name}.", node) for c in tree.body if isinstance(c, ast.ClassDef) for node in c.body
    ]
    return [(prefix + node.name, node) for prefix, node in found if isinstance(node, ast.FunctionDef)]


def messages_of(source: str, module: str) -> Iterator[Message]:
    "The messages of a module's source, in its order."
    tree = ast.parse(source)
    known = definitions(tree)
    for name, function in scopes(tree):
        calls = sorted(
            (n for n in ast.walk(function) if isinstance(n, ast.Call)), key=lambda n: (n.lineno, n.col_offset)
        )
        found = [item for call in calls for item in said_by(call, known)]
        found += returned_warnings(function, known) if name.endswith("_warnings") else []
        for kind, text in dict.fromkeys(found):
            yield Message(kind, text, module, name)


MOMENTS = {
    "Reading the configuration": ("every command", ("config",)),
    "Opening the work directory": (
        "check, and every command that writes products",
        ("core.logs", "core.writing", "workdir.layout", "workdir.lock", "pipeline.collisions"),
    ),
    "Reading images, catalog and Gaia table": (
        "check, run-epsf, build-patches, build-patch-inputs, run",
        ("core.geometry", "inputs", "tile"),
    ),
    "Building ePSFs": ("run-epsf, run", ("epsf",)),
    "Cutting patches": ("build-patches, build-patch-inputs, run", ("patches.geometry", "patches.payload")),
    "Using products of earlier commands": (
        "run-patches, merge, compute-zp, model, report",
        ("workdir", "core.reading"),
    ),
    "Fitting patches": (
        "run-patches, run; fit_patch_at in a notebook",
        (
            "patches",
            "fit",
            "results.patch_catalogs",
            "pipeline.executors",
            "pipeline.records",
            "pipeline.resume",
            "pipeline.run_patches",
        ),
    ),
    "Merging": ("merge, run", ("results.merge",)),
    "Zero points": ("compute-zp, run", ("results.zero_points", "pipeline.stages")),
    "Model images and the report": (
        "model, report",
        ("results.model_images", "reports", "plots", "pipeline.pictures"),
    ),
    "Many tiles": ("run-many", ("pipeline.batch", "pipeline.tile_list")),
    "Inspectors": ("the inspectors in a notebook", ("widgets", "results.finished")),
    "Sample data": ("make-sample, download-sample", ("sample",)),
    "The command line": ("every command", ("cli", "pipeline", "core")),
}


def moment_of(module: str) -> str:
    """The moment of a run, a key of `MOMENTS`, at which messages of a module appear.

    Raises
    ------
    LookupError
        If the module was assigned to none.
    """
    inside = module.removeprefix("tract7dt.")
    of_module = {name: moment for moment, (_, names) in MOMENTS.items() for name in names}
    for name in (inside, inside.partition(".")[0]):
        if name in of_module:
            return of_module[name]
    raise LookupError(f"{module}: name it in MOMENTS of tools/messages.py")


def reading_order(path: Path) -> str:
    "The notebook that a module comes from, which sorts as one reads."
    found = re.search(r"File to edit: \S*?nbs/(\S+)\.ipynb", path.read_text(encoding="utf-8"))
    return found[1] if found else "~"


def all_messages() -> list[Message]:
    "The messages of all modules of this package, in the order of their notebooks."
    package = Path(find_spec("tract7dt").origin).parent
    paths = sorted(package.rglob("*.py"), key=reading_order)
    modules = [
        (path, ".".join((package.name, *path.relative_to(package).with_suffix("").parts))) for path in paths
    ]
    return [
        message
        for path, module in modules
        for message in messages_of(path.read_text(encoding="utf-8"), module)
    ]
