"""A product never takes the place of what is read: refused in every command before anything is written, under
whatever name the file goes.
"""

import inspect
import os
from pathlib import Path

import pytest
import yaml
from small_inputs import Field, rows_at

from tract7dt.config.load import dump_config, load_config, snapshot
from tract7dt.core.errors import UserError
from tract7dt.pipeline import batch
from tract7dt.pipeline.collisions import files_read, files_written, ignores_case, refuse_collisions
from tract7dt.pipeline.stages import inputs_now
from tract7dt.sample.make import OF_A_SAMPLE, check_place
from tract7dt.workdir.layout import CELL_PICTURES, MARKS, File, FileOfEach, Layout, product_paths

COMMANDS = (
    "check run run-epsf build-patches build-patch-inputs run-patches merge compute-zp model report".split()
)
NAMES = dict(zip(MARKS, ("m650", "r00_c01", "r00_c01_pr02_pc03", "src_7.png")))


class Disk(Field):
    """A small field with its configuration as a file, and a record of all that lies in its folder."""

    def __init__(self, folder):
        super().__init__(folder)
        self.catalog(rows_at([(40, 50), (90, 60)]))
        self.gaia("source_id,ra,dec,phot_g_mean_mag\n")

    def write(self, name="config.yaml", **sections) -> Path:
        path, work = self.folder / name, dict(work_dir=str(self.folder / "work"))
        sections["outputs"] = work | sections.get("outputs", {})
        path.write_text(yaml.safe_dump(self.cfg(**sections).model_dump(mode="json")))
        return path

    def load(self, **sections):
        return load_config(self.write(**sections))

    def science(self) -> Path:
        return self.folder / "m400.fits"

    def content(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


def complaints(cfg) -> list[str]:
    """What is said of a configuration; nothing if it is accepted."""
    try:
        refuse_collisions(cfg)
    except UserError as refusal:
        return str(refusal).splitlines()
    return []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_before_it_writes(program, disk, command):
    config = disk.write(outputs=dict(work_dir="work", final_catalog="../cat.csv"))
    before = disk.content()
    done = program(command, config)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"tract7dt: outputs.final_catalog and inputs.input_catalog are the same file, {disk.folder}/cat.csv; "
        "set outputs.final_catalog to another path\n"
    )
    assert disk.content() == before and not (disk.folder / "work").exists()


def test_whatever_is_read_is_kept(disk):
    image = disk.science()
    read = {
        "inputs.input_catalog": disk.folder / "cat.csv",
        "inputs.gaiaxp_synphot_csv": disk.folder / "gaia.csv",
        "inputs.image_list_file": disk.folder / "images.txt",
        "inputs.image_list_file (line": image,
        "inputs.weight_suffix (of": image.with_name(f"{image.stem}_weight.fits"),
        "epsf.psf_fits": disk.folder / f"psf_{image.stem}.fits",
        "--config": disk.folder / "config.yaml",
    }
    for band in disk.bands:
        for path in (disk.folder / f"{band}_weight.fits", disk.folder / f"psf_{band}.fits"):
            path.write_bytes(image.read_bytes())
    for key, path in read.items():
        cfg = disk.load(
            inputs=disk.sections["inputs"] | dict(weight_suffix="_weight.fits"),
            epsf=dict(psf_fits="psf_{band}.fits", epsf_ngrid=1),
            outputs=dict(work_dir="work", final_catalog=str(path)),
        )
        (line,) = [line for line in complaints(cfg) if f"and {key}" in line]
        assert f"are the same file, {path}; set outputs.final_catalog" in line


def test_what_the_manifest_records_as_read_is_compared(disk):
    image = disk.science()
    for band in disk.bands:
        for name in (f"{band}_weight.fits", f"psf_{band}.fits"):
            (disk.folder / name).write_bytes(image.read_bytes())
    cfg = disk.load(
        inputs=disk.sections["inputs"] | dict(weight_suffix="_weight.fits"),
        epsf=dict(psf_fits="psf_{band}.fits", epsf_ngrid=1),
    )
    recorded = {file.path for file in inputs_now(cfg)}
    assert len(recorded) == 9 and recorded <= {str(known.path) for known in files_read(cfg)}


def test_all_are_told_at_once(disk):
    lines = complaints(
        disk.load(
            outputs=dict(work_dir="work", final_catalog="../cat.csv"), logging=dict(file="../images.txt")
        )
    )
    assert len(lines) == 2 and "logging.file and inputs.image_list_file" in lines[1]
    lines = complaints(disk.load(outputs=dict(work_dir="cat.csv"), inputs=dict(gaiaxp_synphot_csv="cat.csv")))
    assert [line.partition(" are ")[0] for line in lines] == [
        "outputs.work_dir and inputs.input_catalog",
        "outputs.work_dir and inputs.gaiaxp_synphot_csv",
    ]


PRODUCTS = [
    (key, str(path))
    for key, paths in product_paths(
        Layout(*(Path("/") / name for name in Layout.__dataclass_fields__)), Path("cat.csv")
    ).items()
    for path in paths
]


@pytest.mark.parametrize(("key", "path"), PRODUCTS, ids=[path for _, path in PRODUCTS])
def test_an_image_may_not_lie_where_a_product_will(disk, key, path):
    for mark, name in NAMES.items():
        path = path.replace(mark, name)
    image = disk.folder / "places" / path[1:]
    image.parent.mkdir(parents=True)
    image.write_bytes(disk.science().read_bytes())
    disk.list(image)
    places = {name: str(disk.folder / "places" / name) for name in Layout.__dataclass_fields__}
    (line,) = complaints(disk.load(outputs=places))
    assert (
        line.startswith(f"outputs.{key}")
        and f"and inputs.image_list_file (line 1) are the same file, {image}; set outputs.{key} to" in line
    )


@pytest.mark.parametrize(
    "name", ["run.log", "compute-zp.log", "run.lock", ".part-12345678-x.fits", "deep/.part-12345678-x.fits"]
)
def test_what_is_appended_to_or_swept_away_counts(disk, name):
    image = disk.folder / "work" / name
    image.parent.mkdir(parents=True)
    image.write_bytes(disk.science().read_bytes())
    disk.list(image)
    assert len(complaints(disk.load())) == 1


def test_no_product_of_the_layout_is_forgotten(disk):
    """Every path that `Layout` can make is one that is compared, whatever the names of bands, cells, patches
    and sources.
    """
    cfg, words = (
        disk.load(),
        {
            "band": "m650",
            "cell_tag": "r00_c01",
            "patch_tag": "r00_c01_pr02_pc03",
            "source_id": "7",
            "name": CELL_PICTURES[0],
            "full_range": True,
            "halo": True,
            "input_catalog": Path("cat.csv"),
        },
    )
    layout, paths = Layout.of(cfg.outputs), []
    for name in dir(Layout):
        member = inspect.getattr_static(Layout, name)
        if isinstance(member, property | File) and name != "folders":
            paths.append(getattr(layout, name))
        elif isinstance(member, FileOfEach) or inspect.isfunction(member) and not name.startswith("_"):
            path_of = getattr(layout, name)
            paths.append(path_of(*(words[word] for word in inspect.signature(path_of).parameters)))
    folders = [layout.zp_dir, *(Path(path) for path in paths if not Path(path).suffix)]
    for path in [path for path in paths if path not in folders]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    disk.list(*(path for path in paths if path not in folders))
    assert len(paths) > 35 and len(complaints(disk.load())) == len(paths) - len(folders) + 1


@pytest.mark.xdist_group("middle_run")
def test_all_files_of_a_run_are_known(middle_run, disk):
    cfg, _ = middle_run
    files = [path for path in Path(cfg.outputs.work_dir).rglob("*") if path.is_file()]
    copies = [path for path in files if path.name.startswith("config_used_")]
    disk.list(*files)
    own = disk.load(
        outputs=dict(work_dir=str(cfg.outputs.work_dir)),
        inputs=dict(input_catalog=str(cfg.inputs.input_catalog)),
    )
    said = "\n".join(complaints(own))
    assert len(files) > 40 and [path for path in files if f" {path.resolve()};" not in said] == copies, (
        "copies of the configuration replace nothing"
    )


def test_links_are_followed(disk):
    for name, link in {"symbolic.csv": os.symlink, "hard.csv": os.link}.items():
        link(disk.folder / "cat.csv", disk.folder / name)
        assert len(complaints(disk.load(outputs=dict(final_catalog=str(disk.folder / name))))) == 1, name
        assert (
            len(
                complaints(
                    disk.load(
                        inputs=dict(input_catalog=name),
                        outputs=dict(final_catalog=str(disk.folder / "cat.csv")),
                    )
                )
            )
            == 1
        ), name
    (disk.folder / "elsewhere").symlink_to(disk.folder)
    assert len(complaints(disk.load(outputs=dict(work_dir="elsewhere", final_catalog="cat.csv")))) == 1


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize(
    "name", ["wcs.fits", "model/m650_model.fits", "EPSFs/m650/r00_c00/meta.json", "run.log"]
)
def test_links_among_the_products_are_seen(disk, link, name):
    product = disk.folder / "work" / name
    product.parent.mkdir(parents=True)
    link(disk.science(), product)
    (line,) = complaints(disk.load())
    assert "are the same file" in line and str(disk.science()) in line
    disk.list(product)
    assert len(complaints(disk.load())) == 1, "the image is listed by the name of the product"


def test_a_folder_of_products_may_be_a_link(disk):
    model = disk.folder / "images" / "m650_model.fits"
    model.parent.mkdir()
    model.write_bytes(disk.science().read_bytes())
    disk.list(model)
    (disk.folder / "work").mkdir()
    assert complaints(disk.load()) == []
    (disk.folder / "work" / "model").symlink_to(model.parent)
    assert len(complaints(disk.load())) == 1


def test_upper_and_lower_case_where_it_does_not_matter(disk):
    """A disk that takes both for the same is imitated: each name in capitals is a link to the other."""
    image = disk.folder / "work" / "model" / "M650_MODEL.FITS"
    image.parent.mkdir(parents=True)
    image.write_bytes(disk.science().read_bytes())
    disk.list(image)
    final = dict(outputs=dict(final_catalog=str(disk.folder / "CAT.CSV")))
    assert complaints(disk.load()) == complaints(disk.load(**final)) == [], "here case matters"
    os.link(image, image.with_name("m650_model.fits"))
    os.link(disk.folder / "cat.csv", disk.folder / "CAT.CSV")
    assert (
        ignores_case(image)
        and ignores_case(disk.folder / "cat.csv")
        and not ignores_case(disk.folder / "images.txt")
    )
    (disk.folder / "WORK").symlink_to("work")
    assert (
        len(complaints(disk.load())) == 1 and len(complaints(disk.load(outputs=dict(work_dir="WORK")))) == 1
    )
    disk.list(disk.science())
    assert len(complaints(disk.load(**final))) == 1


def test_inputs_may_lie_among_the_products(disk):
    """Only the very name of a product is taken: folders may be shared, and a copy of the configuration is one
    that can be run.
    """
    work = disk.folder / "work"
    names = [
        "input.fits",
        "EPSFs/m650.fits",
        "patch_payloads/m650.fits.gz",
        "outputs/r00_c00_pr00_pc00/m650.fits",
        "tile/cat.csv",
        "ZP/m650.fits",
        ".part-mine.fits",
    ]
    for name in names:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(disk.science().read_bytes())
    disk.list(*(work / name for name in names))
    assert complaints(disk.load()) == complaints(disk.load(outputs=dict(work_dir="."))) == []
    assert complaints(load_config(snapshot(disk.load(), work))) == []


def test_what_cannot_be_read_is_left_to_the_load(disk):
    disk.list("nowhere.fits", "loop.fits", "\0")
    (disk.folder / "loop.fits").symlink_to("loop.fits")
    inputs = disk.sections["inputs"] | dict(input_catalog="nowhere.csv", weight_suffix="_w.fits")
    assert complaints(disk.load(inputs=inputs, epsf=dict(psf_fits="{band}.fits"))) == []
    (disk.folder / "images.txt").unlink()
    assert complaints(disk.load(inputs=inputs)) == []


def test_two_products_in_one_place(disk):
    work = disk.folder / "work"
    for name in ("manifest.json", "ZP/zp_vs_mag__m650.png", "run.log", "EPSFs"):
        (line,) = complaints(disk.load(outputs=dict(final_catalog=str(work / name))))
        assert line.startswith("outputs.final_catalog and ") and line.endswith(
            f"are the same file, {work / name}; set outputs.final_catalog to another path"
        )
    (line,) = complaints(disk.load(logging=dict(file=str(work / "output_catalog.csv"))))
    assert line.startswith("outputs.final_catalog and logging.file are the same file")
    (line,) = complaints(disk.load(logging=dict(file="wcs.fits")))
    assert line == (
        f"logging.file and outputs.work_dir (wcs.fits) are the same file, {work}/wcs.fits; set "
        f"logging.file to another path"
    )
    assert (
        complaints(disk.load(logging=dict(file="my.log")))
        == complaints(disk.load(outputs=dict(epsf_dir=".", patches_dir=".", overlay_dir=".")))
        == []
    )


def test_every_product_says_which_key_places_it(disk):
    assert {made.key for made in files_written(disk.load())} == {
        *(f"outputs.{name}" for name in Layout.__dataclass_fields__),
        "logging.file",
    }


# ---- many tiles
# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def survey(disk):
    """Two tiles and the list of them."""
    for name in "ab":
        disk.write(f"{name}.yaml", outputs=dict(work_dir=name))
    (disk.folder / "tiles.txt").write_text("a.yaml\nb.yaml\n")
    return disk


def refused(program, survey, *words) -> list[str]:
    """What run-many says; it has run and written nothing."""
    before = survey.content()
    done = program("run-many", "--tiles", survey.folder / "tiles.txt", *words, cwd=survey.folder)
    assert (done.returncode, done.stdout, survey.content()) == (2, "", before)
    return done.stderr.splitlines()


def test_a_tile_does_not_replace_the_input_of_another(program, survey):
    (survey.folder / "other.csv").write_text("ID,RA,DEC\n")
    config = survey.write(
        "b.yaml",
        inputs=dict(input_catalog="other.csv", gaiaxp_synphot_csv=None),
        outputs=dict(work_dir="b", final_catalog="../cat.csv"),
    )
    (line,) = refused(program, survey)
    assert (
        f"outputs.final_catalog of {config} and inputs.input_catalog of {survey.folder}/a.yaml are "
        f"the same file"
    ) in line


def test_a_tile_does_not_replace_its_own_input_or_a_configuration(program, survey):
    survey.write(
        "b.yaml", outputs=dict(work_dir="b", final_catalog="../images.txt"), logging=dict(file="../a.yaml")
    )
    lines = refused(program, survey)
    assert len(lines) == 3 and any(
        "inputs.image_list_file of" in line and "a.yaml are the same file" in line for line in lines
    )
    assert any("logging.file of" in line and "and --tiles are the same file" in line for line in lines)


@pytest.mark.parametrize(
    "name",
    ["tiles.txt", "a.yaml", "cat.csv", "images.txt", "a/output_catalog.csv", "b/manifest.json", "b/run.log"],
)
@pytest.mark.parametrize("again", [[], ["--again"]])
def test_the_table_of_tiles_replaces_nothing(program, survey, name, again):
    lines = refused(program, survey, "--summary", name, *again)
    assert all(
        line.startswith("tract7dt: --summary and ") and line.endswith("set --summary to another path")
        for line in lines
    )
    assert 1 <= len(lines) <= 2


def test_logs_of_tiles_replace_nothing(program, survey):
    (survey.folder / "run_many_logs").mkdir()
    config = survey.folder / "run_many_logs" / "0001_a.log"
    (survey.folder / "a.yaml").rename(config)
    (survey.folder / "tiles.txt").write_text(f"b.yaml\n{config}\n")
    (line,) = refused(program, survey)
    assert line.startswith("tract7dt: --summary (log) and --tiles are the same file")


def test_another_table_is_kept_although_all_tiles_run_again(survey):
    (survey.folder / "notes.csv").write_text("night,weather\n1,fine\n")
    with pytest.raises(UserError, match="this is no table of run-many"):
        batch.run_many(str(survey.folder / "tiles.txt"), str(survey.folder / "notes.csv"), again=True)
    assert (survey.folder / "notes.csv").read_text() == "night,weather\n1,fine\n"


# ---- commands without a configuration
# -----------------------------------------------------------------------------


def test_dump_config_replaces_configurations_only(disk):
    config = disk.write()
    dump_config(config, force=True)
    config.write_text("# half edited\ninputs:\n  input_catalog: [\n")
    dump_config(config, force=True)
    for path in (disk.folder / "cat.csv", disk.folder / "images.txt", disk.science()):
        before = path.read_bytes()
        with pytest.raises(UserError, match="is no configuration, and is not replaced"):
            dump_config(path, force=True)
        assert path.read_bytes() == before


def test_make_sample_removes_nothing_of_the_user(tmp_path):
    for name in OF_A_SAMPLE | {"work/run.log", "work_middle/ZP/zp_summary.csv"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    check_place(tmp_path, force=True)
    for name in ("mine.yaml", "images/other.fits", "data/cat.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        UserError,
        match=r"\(data/cat.csv, images/other.fits, mine.yaml\); move them away, or choose another --dir",
    ):
        check_place(tmp_path, force=True)
