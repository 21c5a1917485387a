"""What SECURITY.md promises: inputs and products are data; they run no code, write nowhere else, and their
texts stay texts.
"""

import ast
import json
import os
import tarfile
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from conftest import ROOT
from small_inputs import rows_at
from test_bad_days import small_tile

from tract7dt.config.load import load_config
from tract7dt.core.errors import UserError
from tract7dt.pipeline import commands as pipeline
from tract7dt.reports import page as report
from tract7dt.sample.download import unpack
from tract7dt.workdir.layout import Layout, safe_name

# ---- no code runs
# -------------------------------------------------------------------------------------------------

MODULES = [p for p in sorted((ROOT / "tract7dt").rglob("*.py")) if p.name != "_modidx.py"]
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "subprocess",
    "pty",
    "code",
    "codeop",
    "imp",
    "runpy",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {
    ("os", "system"),
    ("os", "popen"),
    ("pd", "read_pickle"),
    ("yaml", "load"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
    ("yaml", "load_all"),
    ("np", "fromregex"),
    ("pd", "eval"),
} | {
    ("os", f"{verb}{end}") for verb in ("exec", "spawn") for end in ("l", "le", "lp", "v", "ve", "vp", "vpe")
}


def forbidden(tree):
    """What a module may not do, as texts."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            f, options = node.func, {k.arg: k.value for k in node.keywords}
            if isinstance(f, ast.Name) and f.id in FORBIDDEN_CALLS:
                yield f"{f.id}()"
            if (
                isinstance(f, ast.Attribute)
                and isinstance(f.value, ast.Name)
                and (f.value.id, f.attr) in FORBIDDEN_METHODS
            ):
                yield f"{f.value.id}.{f.attr}()"
            if (
                isinstance(f, ast.Attribute)
                and f.attr in ("query", "eval")
                and isinstance(f.value, ast.Name)
                and f.value.id not in ("tree", "self")
            ):
                yield from (
                    f"{f.attr}() of a text"
                    for a in node.args[:1]
                    if isinstance(a, (ast.JoinedStr, ast.Constant))
                )
            if isinstance(options.get("shell"), ast.Constant) and options["shell"].value:
                yield "shell=True"
            safe = (
                isinstance(options.get("allow_pickle"), ast.Constant)
                and options["allow_pickle"].value is False
            )
            if (
                isinstance(f, ast.Attribute)
                and f.attr in ("load", "save")
                and isinstance(f.value, ast.Name)
                and f.value.id in ("np", "numpy")
                and not safe
            ):
                yield f"np.{f.attr}() that may pickle"


STARTS_ITSELF = "batch.py"  # each tile is a process of its own


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "tract7dt")))
def test_no_module_can_run_code_that_it_reads(path):
    found = set(forbidden(ast.parse(path.read_text(encoding="utf-8"))))
    assert found <= ({"import subprocess"} if path.name == STARTS_ITSELF else set())


def test_the_only_program_that_is_started_is_this_one():
    """A list of words, the running interpreter first, code that no input reaches; no shell."""
    tree = ast.parse((ROOT / "tract7dt" / "pipeline" / STARTS_ITSELF).read_text(encoding="utf-8"))
    calls = [
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).startswith("subprocess.")
    ]
    assert calls
    for call in calls:
        words = [ast.unparse(word) for word in call.args[0].elts]
        assert words[:3] == ["sys.executable", "'-c'", "BEGIN"] and "shell" not in {
            k.arg for k in call.keywords
        }


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from subprocess import run",
        "eval('1')",
        "yaml.load(t)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "np.save(f, a)",
        "run(x, shell=True)",
        "os.system(x)",
        "pd.read_pickle(f)",
    ],
)
def test_the_search_finds_what_it_looks_for(code):
    assert list(forbidden(ast.parse(code)))


@pytest.mark.parametrize(
    "text",
    [
        "inputs: !!python/object/apply:os.system ['touch {mark}']\n",
        "!!python/object/new:os.system ['touch {mark}']\n",
        "inputs:\n  tile_name: !!python/name:os.system\n",
        "crop: &a {{margin: *a}}\n",
    ],
)
def test_yaml_makes_no_objects(tmp_path, text):
    """Tags that would call functions, and a value that holds itself, are refused as what they are: no plain
    YAML.
    """
    (tmp_path / "c.yaml").write_text(text.format(mark=tmp_path / "mark"))
    with pytest.raises(UserError, match="c.yaml"):
        load_config(tmp_path / "c.yaml")
    assert not (tmp_path / "mark").exists()


def test_a_yaml_bomb_is_refused_or_small(tmp_path):
    """Aliases of aliases, a billion items when written out, are neither written out nor accepted."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"] + [
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)
    ]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError) as raised:
        load_config(tmp_path / "c.yaml")
    assert len(str(raised.value)) < 10_000


def test_stored_arrays_with_objects_are_refused(tmp_path):
    """A pickled object in the place of an ePSF stamp is not loaded."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "mark"),)

    np.save(tmp_path / "epsf.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "epsf.npy", allow_pickle=False)
    assert not (tmp_path / "mark").exists()


# ---- nothing is written elsewhere
# ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "/etc/x", "a/../../b", "~root", "C:\\x", "a\0b", "", "-rf", "..." * 200]
)
def test_names_cannot_leave_their_folder(tmp_path, name):
    work = tmp_path / "work"
    layout = Layout(**{field: work / field for field in Layout.__dataclass_fields__} | dict(work_dir=work))
    paths = [
        layout.model_image(name),
        layout.residual_image(name),
        layout.zp_plot(name),
        layout.psf_model(name),
        layout.epsf_stamp(name, "r00_c00"),
        layout.montage("p", name),
        layout.cell_picture(name, "r00_c00", "epsf"),
    ]
    assert all(path.resolve().is_relative_to(work) for path in paths)
    assert layout.psf_model(name).resolve().parent.parent == layout.epsf_dir, (
        "the folder of a band is a folder of its own"
    )
    assert not safe_name(name).startswith(".") and len(safe_name(name)) <= 100


def members(path, names, kind):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                packed.writestr(name, b"text")
        return path
    with tarfile.open(path, "w:gz") as packed:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}.get(
                name, tarfile.REGTYPE
            )
            info.linkname = "/etc/passwd"
            packed.addfile(info)
    return path


@pytest.mark.parametrize(
    "kind, name",
    [
        ("zip", "../out"),
        ("zip", "/tmp/out"),
        ("zip", "a/../../out"),
        ("tar", "../out"),
        ("tar", "/tmp/out"),
        ("tar", "a/../../out"),
        ("tar", "link"),
        ("tar", "hard"),
        ("tar", "device"),
    ],
)
def test_members_of_archives_cannot_escape(tmp_path, kind, name):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="not unpacked"):
        unpack(members(tmp_path / "a", ["good.txt", name], kind), tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == [] and not (tmp_path / "out").exists()


# ---- hostile names, from images and catalog to the report
# ----------------------------------------------------------

BAND, ID = "<b onload=x>/../../$\\no$", "<script>alert('x')</script>/../..$\\frac$ &amp;"
CODE = ("<script>alert", "<b onload", "onload=x>")


class Tags(HTMLParser):
    """Names of all elements and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.seen = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen |= {tag} | {name for name, _ in attrs}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run whose FILTER, IDs, TYPE values and tile name are made to break out; with every picture."""
    folder = tmp_path_factory.mktemp("hostile") / "deep" / "inside"
    folder.mkdir(parents=True)
    small_tile(folder)
    cfg = load_config(
        folder / "config.yaml",
        {
            "inputs.tile_name": "<script>alert(1)</script>",
            "patch_run.no_cutouts": False,
            "patch_run.no_patch_overview": False,
            "patch_run.cutout_max_sources": 1,
            "overlay.enabled": True,
            "bright_mask.enabled": True,
            "epsf.ngrid": 1,
            "logging.level": "WARNING",
        },
    )
    from astropy.io import fits

    fits.setval(folder / "m400.fits", "FILTER", value=BAND)
    table = rows_at([(px, py) for px in (30, 75, 130) for py in (20, 60, 100)]).assign(TYPE="STAR")
    table.loc[0, ["ID", "TYPE"]] = ID, "<script>alert(2)</script>"
    table.to_csv(folder / "cat.csv", index=False)
    return folder, cfg, pipeline.run(cfg)


def test_hostile_names_run_and_stay_inside(hostile):
    folder, cfg, result = hostile
    assert result.ok and f"FLUX_{BAND}_fit" in result.catalog and ID in list(result.catalog.ID)
    outside = [p for p in folder.parents[1].rglob("*") if not p.is_dir() and not p.is_relative_to(folder)]
    own = {"config.yaml", "cat.csv", "images.txt", "m400.fits", "m425.fits"}
    assert outside == [] and {p.name for p in folder.iterdir() if p.is_file()} == own
    assert list(result.layout.cutouts_dir("r00_c00_pr00_pc00").iterdir())


def test_pages_show_hostile_names_as_text(hostile):
    folder, cfg, result = hostile
    page = report.report(cfg).path.read_text(encoding="utf-8")
    pages = [page] + [
        shown._repr_html_()
        for shown in (result, result.tile, result.epsf, result.patches, cfg)
        if hasattr(shown, "_repr_html_")
    ]
    for text in pages:
        assert not any(code in text for code in CODE)
        assert "script" not in Tags(text).seen and not {
            name for name in Tags(text).seen if name.startswith("on")
        }
    assert "&lt;b onload=x&gt;" in page


def test_products_of_a_hostile_tile_are_plain(hostile):
    """JSON that a strict reader takes, YAML without tags."""
    folder, cfg, result = hostile
    for path in result.layout.work_dir.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda token: pytest.fail(f"{path}: {token}"))
    for path in result.layout.work_dir.glob("config_used_*.yaml"):
        assert yaml.safe_load(path.read_text())["inputs"]["tile_name"] == cfg.inputs.tile_name


def test_a_band_name_cannot_lead_to_files_elsewhere(tmp_path):
    """The pattern of given PSFs takes band and cell as names, not as parts of a path, and knows no other
    fields.
    """
    from tract7dt.workdir.layout import psf_file

    assert psf_file(tmp_path / "{band}.fits", "../../etc/x") == tmp_path / "___.._etc_x.fits"
    assert (
        psf_file(tmp_path / "{band}" / "{cell}.fits", "m400", "r00_c01") == tmp_path / "m400" / "r00_c01.fits"
    )
    with pytest.raises(UserError, match="epsf.psf_fits"):
        load_config(small_tile(tmp_path), {"epsf.psf_fits": "psf_{band.__class__}.fits"})


def test_security_is_stated():
    text = (ROOT / "SECURITY.md").read_text()
    for word in ("pickle", "eval", "shell", "YAML", "archive", "report", "advisor"):
        assert word in text
