"""Mutated inputs: they load, or are refused with a line for each problem; nothing else, soon, and no number
changes unseen.

Every case goes through `check`, that is through all that reads inputs. What is loaded is compared with what
stands in the
mutated file as an independent reader sees it. A few cases of each kind run always, thousands with `-m slow`;
they are the
same ones every time.
"""

import csv
import io
import math
import signal
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_inputs import Field, header, noise, sky

from tract7dt.config.keys import describe_keys
from tract7dt.config.load import load_config, to_yaml
from tract7dt.config.schema import Config
from tract7dt.core.errors import UserError
from tract7dt.core.reading import is_missing
from tract7dt.pipeline import commands as pipeline

SHAPE = (48, 64)
SECONDS = 20.0
QUICK, MANY = 22, 400
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::astropy.utils.exceptions.AstropyWarning"
    ),  # which commands do not show either
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning"
    ),  # files that astropy leaves open when a damaged one makes it stop
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
amount = pytest.mark.parametrize(
    "cases", [QUICK, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)


class Hangs(BaseException):
    """A case took too long; nothing in the program may catch it."""


@contextmanager
def time_limit():
    """Processor seconds for one case, so that a busy machine makes no difference."""

    def stop(number, frame):
        raise Hangs(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def check(config):
    """What `check` loads, or None if it refuses, which it must do in lines for people."""
    with time_limit(), redirect_stdout(io.StringIO()):
        try:
            return pipeline.check(config)
        except UserError as refusal:
            lines = str(refusal).split("\n")
            assert all(line.strip() and len(line) < 3000 and line.isprintable() for line in lines), lines
            return None


def run(cases, strategy, function, share=0.1):
    """Call `function`, which tells whether its case was loaded, with so many values of a strategy, the same
    ones every time.

    At least a `share` of them must be loaded: nothing is learnt from inputs that are all refused. It is about
    half of what
    is loaded now; where nearly every change of a file's text makes it useless, one case must be.
    """
    loaded = []
    plain = settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    plain(given(strategy)(lambda case: loaded.append(function(case))))()
    assert all(isinstance(one, bool) for one in loaded) and np.mean(loaded) >= share, np.mean(loaded)


TABLE = "ID,RA,DEC,TYPE,FLUX_m400,FLUX_m400_ERR,ELL,THETA,Re,Re_ERR,SERSIC_n,POS_ERR,note\n" + "".join(
    f"s{i},{ra!r},{dec!r},{kind},{100 + i}.5,2.5,0.{i},{10 * i},{2 + i}.25,0.5,{1 + i}.0,0.1,n{i}\n"
    for i, (kind, ra, dec) in enumerate(
        (k, float(r), float(d))
        for k, r, d in zip(
            ("STAR", "EXP", "DEV", "SERSIC", "GAL", ""),
            *sky(np.array([10, 20, 30, 40, 50, 55]), np.array([10, 30, 20, 40, 15, 35]), SHAPE),
        )
    )
)
GAIA = "source_id,ra,dec,phot_g_mean_mag,mag_m400,mag_m425\n" + "".join(
    f"{4_000_000_000_000_000_000 + i},{float(ra)!r},{float(dec)!r},1{i}.5,1{i}.25,1{i}.75\n"
    for i, (ra, dec) in enumerate(zip(*sky(np.array([10.3, 25, 60]), np.array([10.2, 25, 5]), SHAPE)))
)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Inputs that every case mutates a part of."""
    made = Field(tmp_path_factory.mktemp("fuzz"), shape=SHAPE)
    restore(made)
    return made


def restore(made):
    """Whole inputs again."""
    made.__post_init__()
    made.catalog(TABLE)
    made.gaia(GAIA)
    cfg = made.as_written(zp=dict(enabled=True, min_box_size_pix=10), epsf=dict(epsf_ngrid=1, ngrid=1))
    (made.folder / "config.yaml").write_text(to_yaml(cfg))


@pytest.fixture(autouse=True)
def whole(field):
    yield
    restore(field)


def test_the_inputs_load_as_they_are(field):
    assert check(field.folder / "config.yaml").tile.shape == SHAPE


# ---- mutations
# ----------------------------------------------------------------------------------------------------

ODD = st.sampled_from(
    [
        "",
        " ",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "1e400",
        "1e-400",
        "0x10",
        "1_000",
        "1,5",
        "\u0661\u0662",
        "--",
        "None",
        "NA",
        "true",
        "=1+1",
        "'",
        '"',
        "\t5",
        " 5 ",
        "1e5",
        "1E+5",
        ".5",
        "5.",
        "+5",
        "1d5",
        "0",
        "-0",
        "-1",
        "9" * 40,
        "1" * 5000,
        "\u00e9",
        "\x00",
        "\ufeff",
        "\r",
        "\n",
        "gaia_1",
        "STAR",
        "star ",
        "150.00000000000001",
        "2.0000000001",
        "-999",
        "1e-320",
        "0.1e1",
        "__import__('os')",
        "%s",
        "{0}",
        "\\",
        "/",
        "../..",
        "<b>",
    ]
)
TEXTS = ODD | st.text(max_size=12)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "delete", "cut", "double"]),
        st.floats(0, 1, exclude_max=True),
        TEXTS,
    ),
    min_size=1,
    max_size=3,
)


def edited(text, edits):
    """`text` with pieces put in, replaced, left out, or doubled."""
    for kind, where, piece in edits:
        i = int(where * len(text))
        text = {
            "insert": text[:i] + piece + text[i:],
            "replace": text[:i] + piece + text[i + len(piece) :],
            "delete": text[:i] + text[i + 1 + len(piece) :],
            "cut": text[:i],
            "double": text[:i] + text[max(0, i - 40) :],
        }[kind]
    return text


def with_cell(table, row, column, value):
    """A CSV text with another value in a cell, quoted as a CSV writer does."""
    rows = list(csv.reader(io.StringIO(table)))
    rows[row % len(rows)][column % len(rows[0])] = value
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


# ---- tables
# -------------------------------------------------------------------------------------------------------


def as_number(text):
    """What a text says: a float, None for a missing one, NaN for one that is no number to everybody."""
    if is_missing_text(text):
        return None
    try:
        return float(text.strip()) if text.strip().isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def is_missing_text(text):
    import pandas as pd

    return bool(is_missing(pd.Series([text])).iloc[0])


def same_number(loaded, text):
    """Whether a loaded value is what stands in the file; what is no number may only be loaded as none, what
    is too large also so.
    """
    said = as_number(text)
    return (
        math.isnan(loaded)
        if said is None or math.isnan(said)
        else loaded == said or math.isinf(said) and math.isnan(loaded)
    )


def check_table(field, table, name):
    """Load a mutated catalog; every number in it must be that of the file."""
    (field.folder / name).write_text(table, encoding="utf-8", newline="")
    done = check(field.folder / "config.yaml")
    if done is None or any(character in table for character in '"\r\x00'):
        return done is not None
    lines = [line for line in csv.reader(io.StringIO(table.removeprefix("\ufeff"))) if line]
    names, rows = [n.strip() for n in lines[0]], lines[1:]
    if name != "cat.csv":
        return True
    loaded = done.tile.catalog[~done.tile.catalog["_is_injected_gaia"]]
    assert len(loaded) == len(rows)
    for column in ("RA", "DEC", "ELL", "THETA", "Re", "SERSIC_n", "POS_ERR", "FLUX_m400"):
        for written in [n for n in names if n.lower() == column.lower()]:
            values = [row[names.index(written)] if names.index(written) < len(row) else "" for row in rows]
            matched = loaded["gaia_source_id"] != ""
            for value, text, gaia in zip(loaded[column], values, matched):
                assert same_number(value, text) or (gaia and column == "FLUX_m400"), (column, value, text)
    if "ID" in names and done.tile.has_ids:
        assert loaded["ID"].tolist() == [row[names.index("ID")].strip() for row in rows]
    return True


@amount
def test_catalog_cells(field, cases):
    cells = st.tuples(st.integers(0, 6), st.integers(0, 12), TEXTS)
    run(cases, cells, lambda cell: check_table(field, with_cell(TABLE, *cell), "cat.csv"), 0.5)


@amount
def test_catalog_text(field, cases):
    run(cases, EDITS, lambda edits: check_table(field, edited(TABLE, edits), "cat.csv"), 0.3)


@amount
def test_gaia_table(field, cases):
    cells = st.tuples(st.integers(0, 3), st.integers(0, 5), TEXTS).map(lambda cell: with_cell(GAIA, *cell))
    run(
        cases,
        cells | EDITS.map(lambda edits: edited(GAIA, edits)),
        lambda table: check_table(field, table, "gaia.csv"),
        0.3,
    )


@amount
def test_image_list(field, cases):
    text = (field.folder / "images.txt").read_text()

    def listed(edits):
        (field.folder / "images.txt").write_text(edited(text, edits), encoding="utf-8", newline="")
        done = check(field.folder / "config.yaml")
        assert done is None or {band.path.name for band in done.tile.bands} <= {"m400.fits", "m425.fits"}
        return done is not None

    run(cases, EDITS, listed, 1 / cases)


# ---- the configuration
# --------------------------------------------------------------------------------------------

KEYS = [info.key for info in describe_keys(Config)]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.integers()
    | st.floats(allow_nan=True)
    | TEXTS
    | st.lists(st.integers(-5, 50) | st.floats() | TEXTS, max_size=4)
    | st.dictionaries(TEXTS, st.integers(), max_size=2)
    | st.sampled_from(
        [
            "auto",
            "STAR",
            "exp",
            "Gaia",
            "1e-4",
            "dask",
            "tractor",
            "ERROR",
            "0.5",
            "10.0",
            10.0,
            "yes",
            "2026-01-01",
            "{band}",
            "~",
            "1:30",
        ]
    )
)


def seen(cfg, key):
    """The value of a dotted key."""
    for name in key.split("."):
        cfg = getattr(cfg, name)
    return cfg


def means(loaded, given):
    """Whether a loaded setting is what was given: the same number, the same words, the same path below some
    folder.
    """
    if isinstance(given, list):
        return len(loaded) == len(given) and all(map(means, loaded, given))
    if isinstance(loaded, Path):
        return (
            loaded.name == Path(given).expanduser().name
            or loaded == (loaded.parent / given).resolve()
            or str(given) in ("", ".")
            or ".." in str(given)
            or "/" in str(given)
        )
    if loaded is None or isinstance(loaded, bool) or isinstance(given, bool):
        return loaded is given or (loaded is None and given is None)
    if isinstance(loaded, (int, float)):
        return float(loaded) == float(given)
    return str(loaded).lower() == str(given).lower()


@amount
def test_configuration_values(field, cases):
    """A value at a key is refused, naming the key, or is the setting."""
    text = yaml.safe_load((field.folder / "config.yaml").read_text())

    def with_value(change):
        key, value = change
        raw = yaml.safe_load(yaml.safe_dump(text))
        *parents, name = key.split(".")
        section = raw
        for parent in parents:
            section = section[parent]
        section[name] = value
        (field.folder / "changed.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
        with time_limit():
            try:
                cfg = load_config(field.folder / "changed.yaml")
            except UserError as refusal:
                assert (
                    name in str(refusal) or "not valid YAML" in str(refusal) or "not a text" in str(refusal)
                ), refusal
                return False
        assert means(seen(cfg, key), value) or (value is None and seen(cfg, key) is None), (
            key,
            value,
            seen(cfg, key),
        )
        if not key.startswith(("outputs", "inputs", "patch_run.executor", "patch_run.engine")):
            check(field.folder / "changed.yaml")
        return True

    run(cases, st.tuples(st.sampled_from(KEYS), VALUES), with_value, 0.02)


@pytest.mark.parametrize(
    "number",
    ["0x" + "f" * 5000, "-0x" + "f" * 5000, "0b" + "1" * 20000, "9" * 5000, "!!int '0x" + "f" * 5000 + "'"],
)
@pytest.mark.parametrize("line", ["patch_run: {{n_opt_iters: {}}}", "patch_run: {{? {} : 1}}", "? {}\n: 1"])
def test_endless_integers(field, number, line):
    """Longer than Python writes into a message; refused with their line."""
    (field.folder / "changed.yaml").write_text(line.format(number) + "\n")
    with pytest.raises(UserError, match="^[^\n]*changed.yaml[^\n]*not valid YAML: [^\n]*digits[^\n]*$"):
        load_config(field.folder / "changed.yaml")


@amount
def test_configuration_text(field, cases):
    text = (field.folder / "config.yaml").read_text()
    pieces = EDITS | st.lists(
        st.tuples(
            st.just("insert"),
            st.floats(0, 1, exclude_max=True),
            st.sampled_from(
                [
                    "&a",
                    "*a",
                    "!!python/object:os.x",
                    "<<: ",
                    "!!binary x",
                    "? ",
                    "- ",
                    "{",
                    "[",
                    "}",
                    "]",
                    ":",
                    "#",
                    "|",
                    ">",
                    "%",
                    "@",
                    "`",
                    "2026-99-99",
                    "0x_",
                    "!!int x",
                    "!!timestamp x",
                ]
            ),
        ),
        min_size=1,
        max_size=3,
    )

    def mutated(edits):
        (field.folder / "changed.yaml").write_bytes(edited(text, edits).encode("utf-8", "surrogatepass"))
        with time_limit():
            try:
                load_config(field.folder / "changed.yaml")
            except UserError as refusal:
                assert all(line.strip() and len(line) < 3000 for line in str(refusal).split("\n"))
                return False
        return True

    run(cases, pieces, mutated, 1 / cases)


# ---- images
# -------------------------------------------------------------------------------------------------------

CARDS = [
    "FILTER",
    "ZP_AUTO",
    "SKYSIG",
    "EGAIN",
    "SATURATE",
    "PEEING",
    "SEEING",
    "CTYPE1",
    "CTYPE2",
    "CRVAL1",
    "CRPIX2",
    "CD1_1",
    "CD2_2",
    "CUNIT1",
    "EQUINOX",
    "RADESYS",
    "BITPIX",
    "NAXIS",
    "NAXIS1",
    "NAXIS2",
    "BSCALE",
    "BZERO",
    "BLANK",
    "EXTEND",
    "SIMPLE",
    "A_ORDER",
    "PV1_1",
    "LONPOLE",
    "GROUPS",
    "PCOUNT",
    "XTENSION",
    "ZIMAGE",
]
NUMBERS = {
    "ZP_AUTO": "zp_auto",
    "SKYSIG": "skysig",
    "EGAIN": "egain",
    "SATURATE": "saturate",
    "PEEING": "fwhm_pix",
}
CARD_VALUES = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-10, 10)
    | st.integers()
    | st.booleans()
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
)


def value_field(value):
    """A value as it stands in a card."""
    if isinstance(value, bool):
        return f"{'T' if value else 'F':>20}"
    return (
        f"{value!r:>20}".upper()
        if isinstance(value, (int, float))
        else "'" + value.replace("'", "''")[:66] + "'"
    )


def with_card(data, key, text):
    """FITS bytes in which a card's value was replaced, or the card put before END."""
    cards = [data[i : i + 80] for i in range(0, 2880, 80)]
    place = next((i for i, c in enumerate(cards) if c[:8].decode().strip() == key), None)
    place = next(i for i, c in enumerate(cards) if c.startswith(b"END     ")) if place is None else place
    if cards[place].startswith(b"END     "):
        cards[place + 1] = cards[place]
    cards[place] = f"{key:<8}= {text}".ljust(80)[:80].encode("latin-1", "replace")
    return b"".join(cards) + data[2880:]


@amount
def test_header_cards(field, cases):
    """A number in a card is the band's number, or refused; with what is no number the file is refused or the
    card reported missing.
    """
    path = field.folder / "m400.fits"
    data = path.read_bytes()

    def with_value(change):
        key, value = change
        text = value if isinstance(value, bytes) else value_field(value)
        path.write_bytes(with_card(data, key, text.decode("latin-1") if isinstance(text, bytes) else text))
        done = check(field.folder / "config.yaml")
        if done is not None and key in NUMBERS and not isinstance(value, bytes):
            loaded = getattr(done.tile.bands[0], NUMBERS[key])
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            assert (
                loaded == value
                if number and loaded is not None
                else loaded is None or str(loaded) == str(value).strip() or float(value) == loaded
            ), (key, value, loaded)
        return done is not None

    run(cases, st.tuples(st.sampled_from(CARDS), CARD_VALUES | st.binary(max_size=40)), with_value)


def packed(field, how):
    """Bytes of the first image, and its name, plain or packed."""
    path = field.folder / f"m400{how}"
    hdu = fits.PrimaryHDU(noise(0, SHAPE), header(SHAPE))
    if how == ".fits.fz":
        hdu = fits.HDUList(
            [fits.PrimaryHDU(), fits.CompImageHDU(noise(0, SHAPE), header(SHAPE), quantize_level=16)]
        )
    hdu.writeto(path, overwrite=True)
    field.list(path.name, "m425.fits")
    return path, path.read_bytes()


@amount
@pytest.mark.parametrize("how", [".fits", ".fits.gz", ".fits.fz"])
def test_damaged_image_files(field, how, cases):
    """Cut at any place, or with bits turned. A plain file that lacks pixels is always refused."""
    path, data = packed(field, how)
    needed = 2880 + 4 * SHAPE[0] * SHAPE[1]

    def damaged(change):
        cut, flips = change
        changed = bytearray(data[: int(cut * len(data))] if cut is not None else data)
        for where, bit in flips:
            if changed:
                changed[int(where * len(changed))] ^= 1 << bit
        path.write_bytes(bytes(changed))
        done = check(field.folder / "config.yaml")
        assert done is None or how != ".fits" or len(changed) >= needed or flips, len(changed)
        return done is not None

    places = st.integers(0, 9999) | st.integers(0, 1500)
    flips = st.lists(
        st.tuples(places.map(lambda place: place / 1e4), st.integers(0, 7)), min_size=1, max_size=4
    )
    run(
        max(16, cases // 3),
        st.tuples(st.floats(0, 1), st.just([])) | st.tuples(st.none(), flips),
        damaged,
        0.06,
    )
