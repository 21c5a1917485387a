"""Every error says how to mend it, and none escapes the page of messages."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

from messages import all_messages, definitions, messages_of, scopes, split_cure, templates

from tract7dt.config.load import REMOVED

PACKAGE = Path(find_spec("tract7dt").origin).parent
MESSAGES = all_messages()
CURES = """add ask build centre check choose close complete correct delete download drop free give
    go install keep leave lie list look make
mend move name put raise rename remove replace resample run save set solve start try unpack use wait
widen write"""
WANTED = "accepted equal expected has legal must need needs patches sources there"

COMPLETED_BY_THE_CALLER = {
    "{path}: no such file": "headers.read_band adds the list's line and where relative paths start",
    "{path}: the file is truncated: {st_size} bytes found, {needed} expected for a 2-D image of "
    "shape {shape}": "as above",
    "{file} line {line}: {key} {gone}": "the texts are in configfile.REMOVED",
    "ePSF of band {band}: {warning}": "the texts are in epsf.band_task.fit_warnings and "
    "epsf.photutils_builder.with_stacks",
    "{path}: cannot be read ({outside})": "the cures are in errors.CURES",
    "{path}: {otherwise}": "the callers of errors.not_read have the texts, which are listed with them",
    "{name}: {refusal}": "configfile.absolute has the text",
    "inputs.image_list_file: {told}": "as above",
    "{key}: {refusal}": "as above",
    "{key}: {problem}": "as above",
    "tiles: {not_read}": "as above",
    "{image_list_file} line {line}: {failure}{cure}": "fits_image.locate_image has the texts; a cure "
    "is added to those without one",
}
PASSED_ON = {
    "tract7dt.core.errors Problems.raise_if_any": "joins what problems.error noted",
    "tract7dt.config.yaml_text Findings.raise_if_any": "joins what findings.add noted",
}


def complaint(message) -> str:
    """What a message lacks: a place (file, key, thing), a cure (for a warning also what is done about it),
    its form.
    """
    if not re.search(r"\{\w+\}|\w+\.\w+|--\w+|archive|GalSim|scheduler", message.problem):
        return "does not say where"
    if re.search(r"[.;]$|  |\n", message.text):
        return "is no single line without a full stop"
    words = set(re.findall(r"\w+", message.cure.lower()))
    said = (
        len(words) > 1
        and message.kind == "warning"
        or words & {*CURES.split(), *WANTED.split()}
        or message.cure.startswith("{")
    )
    return "" if said or message.text in COMPLETED_BY_THE_CALLER else "names no cure"


def test_every_message_says_where_and_what_to_do():
    assert len(MESSAGES) > 120
    assert [f"{m.module}.{m.function} {why}: {m.text}" for m in MESSAGES if (why := complaint(m))] == []


def test_renamed_keys_say_what_to_do():
    assert all(split_cure(text)[1] for text in REMOVED.values())


def raise_sites() -> list[tuple[str, ast.Call, dict]]:
    """All places that raise a UserError: module and function, the call, the definitions of the module."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module, tree = (
            ".".join(("tract7dt", *path.relative_to(PACKAGE).with_suffix("").parts)),
            ast.parse(path.read_text()),
        )
        for name, function in scopes(tree):
            calls = [
                n.exc for n in ast.walk(function) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
            ]
            found += [
                (f"{module} {name}", call, definitions(tree))
                for call in calls
                if ast.unparse(call.func) in ("UserError", "NotWritten")
            ]
    return found


def test_no_error_is_overlooked():
    """Each raised UserError has its text on the page, but for those that join texts which are there."""
    listed = {f"{m.module} {m.function}" for m in MESSAGES}
    sites = raise_sites()
    assert len(sites) > 60
    assert [
        place for place, call, known in sites if not templates(call.args[0], known) and place not in PASSED_ON
    ] == []
    assert [place for place, _, _ in sites if place not in listed | set(PASSED_ON)] == []


def test_the_exceptions_are_still_needed():
    assert {m.text for m in MESSAGES} >= set(COMPLETED_BY_THE_CALLER)
    assert {place for place, _, _ in raise_sites()} >= set(PASSED_ON)


def test_a_message_without_cure_would_be_noticed():
    texts = {
        "it is bad; mend it": "does not say where",
        "{path} is bad": "names no cure",
        "{path} is bad; what a pity": "names no cure",
        "{path} is bad; mend it": "",
        "{path} is bad; mend it.": "is no single line without a full stop",
    }
    for text, why in texts.items():
        (message,) = messages_of(f"def read(path):\n    raise UserError(f'{text}')", "room")
        assert complaint(message) == why
