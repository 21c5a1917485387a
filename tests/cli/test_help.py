"""Help, version and misunderstood command lines: what is said, with which exit code, and that nothing heavy
starts for it.
"""

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tract7dt.cli.main
from tract7dt import __version__
from tract7dt.cli.commands import GROUPS, commands, definition, lazy
from tract7dt.cli.main import cli, options_of
from tract7dt.core.exit_codes import EXIT_CODES

SPEC = (
    "run",
    "check",
    "run-epsf",
    "build-patches",
    "build-patch-inputs",
    "run-patches",
    "merge",
    "compute-zp",
    "model",
    "report",
    "dump-config",
    "make-sample",
    "download-sample",
)
HEAVY = (
    "numpy",
    "pandas",
    "astropy",
    "scipy",
    "matplotlib",
    "yaml",
    "pydantic",
    "IPython",
    "tract7dt.pipeline.commands",
    "tract7dt.config.schema",
)


@pytest.fixture
def said(capsys):
    """What a command line prints: exit code, standard output, standard error."""

    def say(*words):
        code = cli(list(words), commands())
        return code, *capsys.readouterr()

    return say


@pytest.fixture
def refused(said, monkeypatch):
    """The one line that answers a command line which was not understood; no command is called."""
    monkeypatch.setattr(tract7dt.cli.main, "call", lambda *job: pytest.fail("a command was called"))

    def refuse(*words):
        code, out, err = said(*words)
        assert (code, out, len(err.splitlines())) == (2, "", 1) and err.startswith("tract7dt: ")
        return err.strip()

    return refuse


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["-V"],
        ["--help"],
        ["run", "--help"],
        ["run", "--confg", "x.yaml"],
        ["make-sample", "--size", "medium"],
        ["rnu"],
    ],
)
def test_nothing_heavy_is_imported_to_answer(words):
    """Help, version and mistakes take a tenth of a second, because astropy and its like stay out."""
    ask = (
        f"import sys; sys.argv = ['tract7dt', *{words!r}]; from tract7dt.cli.main import main\ntry: "
        f"main()\nexcept SystemExit as end: code = end.code\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask + f"print('imported:', sorted({{*{HEAVY!r}}} & {{*sys.modules}}))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.endswith("imported: []\n"), done.stdout + done.stderr


def test_version(program):
    assert program("--version").stdout.strip() == program("-V").stdout.strip() == f"tract7dt {__version__}"


@pytest.mark.parametrize(
    "words, code", [([], 0), (["run", "--help"], 0), (["rnu"], 2), (["run", "none.yaml"], 2)]
)
def test_python_m_is_the_program(words, code, tmp_path):
    """What it says is what `tract7dt` says, names and all."""
    ways = [sys.executable, "-m", "tract7dt"], [Path(sys.executable).with_name("tract7dt")]
    said, expected = (
        subprocess.run([*way, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        for way in ways
    )
    assert (said.returncode, said.stdout, said.stderr) == (
        code,
        expected.stdout,
        expected.stderr,
    ) and "__main__" not in said.stdout + said.stderr


def test_help_is_not_paged_and_can_be_cut(program):
    """On standard output, at once; a reader who closes the pipe causes no traceback."""
    done = program("help")
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith(f"tract7dt {__version__}: ")
    cut = subprocess.run(
        f"{Path(sys.executable).with_name('tract7dt')} help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert cut.stdout.count("\n") == 1 and cut.stderr == ""


@pytest.mark.parametrize("words", [(), ("help",), ("--help",), ("-h",), ("help", "help")])
def test_overview_lists_the_commands_in_groups(said, words):
    code, out, err = said(*words)
    assert (code, err) == (0, "") and "usage: tract7dt COMMAND" in out and "example:" in out
    assert {name for name in SPEC if not re.search(rf"^  {name} +[A-Z]", out, re.MULTILINE)} == set()
    assert [line.rstrip(":") for line in out.splitlines() if line.rstrip(":") in GROUPS] == list(GROUPS)


def test_list_of_commands_is_the_promised_one():
    assert set(SPEC) <= set(commands())


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--help"),
        ("help", "run"),
        ("run_epsf", "-h"),
        ("help", "build_patch_inputs"),
        ("model", "x.yaml", "--help"),
        ("--help", "run"),
    ],
)
def test_help_of_a_command(said, words):
    """Name and one line, options with what they are, an example, exit codes; nothing is run."""
    code, out, err = said(*words)
    name = next(w for w in words if w not in ("help", "--help", "-h")).replace("_", "-")
    assert (code, err) == (0, "") and out.startswith(f"tract7dt {name}: ")
    assert f"\nusage: tract7dt {name} --config PATH [options]\n" in out
    assert (
        "\n  --config PATH  The YAML configuration file" in out
        and f"\nexample:\n  tract7dt {name} --config config.yaml" in out
    )
    assert all(re.search(rf"^  {number}  +\w", out, re.MULTILINE) for number in EXIT_CODES)


def test_every_command_explains_itself(said):
    """Each help has its first line, usage, example; each option has a text, and its default when there is
    one.
    """
    for name, function in commands().items():
        _, text, _ = said(name, "--help")
        assert re.match(rf"tract7dt {name}: [A-Z][^.]*\.\s", text), text.splitlines()[0]
        assert f"usage: tract7dt {name} " in text and f"\nexample:\n  tract7dt {name}" in text
        assert "``" not in text and "Parameters" not in text and max(map(len, text.splitlines())) <= 100
        for option in options_of(function).values():
            assert re.search(rf"^  {re.escape(option.written)}  +[A-Z\d].{{8,}}", text, re.MULTILINE), (
                name,
                option,
            )
            assert (
                option.default in (None, False)
                or option.needed
                or f"(default: {option.default})" in " ".join(text.split())
            )


def test_help_fits_a_narrow_terminal(said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    for words in (["help"], *(["help", name] for name in commands())):
        _, out, _ = said(*words)
        prose = [
            line for line in out.splitlines() if not line.startswith(("usage:", "  tract7dt", "--config"))
        ]
        assert max(map(len, prose)) <= 72, words


@pytest.mark.parametrize("path", [path for paths in GROUPS.values() for path in paths])
def test_help_read_from_the_source_is_that_of_the_function(path):
    module, _, name = path.rpartition(".")
    real, read = getattr(import_module(module), name), lazy(path, "")
    assert inspect.getdoc(real) == inspect.getdoc(read)
    seen = [
        [(p.name, p.default, p.kind) for p in inspect.signature(f).parameters.values()] for f in (real, read)
    ]
    assert seen[0] == seen[1]


def test_command_that_is_nowhere_defined_is_named():
    with pytest.raises(LookupError, match="tract7dt.core.errors: no function walk"):
        definition("tract7dt.core.errors", "walk")
    assert isinstance(definition("tract7dt.core.errors", "list_some"), ast.FunctionDef)


@pytest.mark.parametrize(
    "written, meant",
    [
        ("run-espf", "run-epsf"),
        ("modle", "model"),
        ("raport", "report"),
        ("downlaod_sample", "download-sample"),
        ("--vesrion", "--version"),
    ],
)
def test_misspelt_command(refused, written, meant):
    assert f"did you mean {meant}?" in refused(written, "x.yaml")


@pytest.mark.parametrize(
    "words, reason",
    [
        (["model", "--confg", "x.yaml"], "--confg: no such option; did you mean --config?"),
        (["run", "x.yaml", "--zzzzzz"], "--zzzzzz: no such option (see tract7dt run --help)"),
        (["run"], "--config is missing"),
        (["run", "--config"], "--config needs a value: The YAML configuration file"),
        (["run", "--config="], "--config needs a value"),
        (["run", "--config", ""], "--config needs a value"),
        (["model", "--bands", "--config", "x.yaml"], "--bands needs a value"),
        (["run", "x.yaml", "y.yaml"], "y.yaml: no such option or argument"),
        (["run", "x.yaml", "__class__"], "__class__: no such option or argument"),
        (["run", "x.yaml", "--", "--interactive"], "--: no such option"),
        (["make-sample", "--size", "larg"], "--size larg: choose one of small, large; did you mean large?"),
        (["make-sample", "--seed", "seven"], "--seed seven: give a whole number"),
        (["make-sample", "--seed", "1.5"], "--seed 1.5: give a whole number"),
        (["make-sample", "--force", "here"], "--force takes no value; it got here"),
        (["make-sample", "--force=yes"], "--force takes no value; it got yes"),
        (["", "x.yaml"], "'': no such command"),
        (["x.yaml"], "x.yaml: no such command"),
        (["x\ny"], "no such command"),
    ],
)
def test_what_is_not_understood_is_one_line_and_runs_nothing(refused, words, reason):
    assert reason in refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["run-epsf", "{file}"],
        ["run_epsf", "--config={file}"],
        ["run-epsf", "--config", "{file}"],
        ["run-epsf", "-c", "{file}"],
    ],
)
def test_a_file_may_be_named_in_every_usual_way(said, tmp_path, words):
    """Names that look like numbers stay names; command names have hyphens or underscores."""
    code, _, err = said(*(word.format(file=tmp_path / "2024") for word in words))
    assert code == 2 and f"{tmp_path / '2024'}: no such configuration file" in err


def test_values_get_the_type_that_the_docstring_declares(monkeypatch):
    from tract7dt.cli.main import parse
    from tract7dt.sample import make as tile

    calls = []
    monkeypatch.setattr(tile, "make_sample", lambda **values: calls.append(values))
    parse("make-sample", commands()["make-sample"], ["--dir", "007", "--seed", "12", "--force"])()
    assert calls == [{"dir": "007", "size": "small", "seed": 12, "force": True}]


def test_debug_shows_the_traceback(said, tmp_path):
    """And the user's error is still the user's: exit code 2, the same line at the end."""
    code, out, err = said("run", str(tmp_path / "nothing.yaml"), "--debug")
    assert (
        (code, out) == (2, "")
        and err.startswith("Traceback (most recent call last):\n")
        and "mistake of the program" not in err
    )
    assert err.endswith(said("run", str(tmp_path / "nothing.yaml"))[2])


HOOKED = (
    "import sys; from tract7dt.cli.main import report_bug; sys.excepthook = report_bug; print('made', "
    "end=' '); raise {}('of ours')"
)


@pytest.mark.parametrize(
    "problem, code, last",
    [("LookupError", 70, "this is a mistake of the program"), ("KeyboardInterrupt", 3, "interrupted; ")],
)
def test_the_last_resort(problem, code, last):
    """What was printed before is not lost, and an interruption outside a command is no mistake."""
    done = subprocess.run(
        [sys.executable, "-c", HOOKED.format(problem)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (code, "made ") and done.stderr.splitlines()[-1].startswith(
        f"tract7dt: {last}"
    )
    assert ("Traceback" in done.stderr) == (code == 70)


@pytest.mark.parametrize(
    "words",
    [["run", "none.yaml"], ["model", "bad.yaml"], ["run-many", "none.txt"], ["dump-config", "bad.yaml"]],
)
def test_a_mistake_in_a_file_of_settings_is_told_before_anything_heavy_is_imported(words, tmp_path):
    """Nobody waits seconds to hear of a misspelt key."""
    (tmp_path / "bad.yaml").write_text("crop: {margins: 3}\n")
    program = (
        "import sys; from tract7dt.cli.main import cli; from tract7dt.cli.commands import commands; "
        "code = cli(sys.argv[1:], commands()); "
        "print(code, sorted({'pandas', 'astropy', 'scipy', 'matplotlib', 'photutils', 'IPython', "
        "'tract7dt.pipeline.commands'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "2 []\n" and words[1] in done.stderr, done
