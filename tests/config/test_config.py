"""The configuration: files of 0.7.0, every kind of mistake, paths, the template."""

import pickle
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml

from tract7dt.config.keys import describe_keys
from tract7dt.config.load import config_warnings, dump_config, load_config, snapshot, template, to_yaml
from tract7dt.config.schema import Config
from tract7dt.core.errors import UserError

OLD = yaml.safe_load((Path(__file__).parents[1] / "data" / "config_070.yaml").read_text())
PATHS = """\
inputs: {input_catalog: cat.csv, image_list_file: images.txt, gaiaxp_synphot_csv: gaia.csv}
outputs: {work_dir: run}
"""
CHANGED = {
    "patch_run.max_workers": "auto",
    "patch_run.dlnp_stop": 0.01,
    "patch_run.python_exe": None,
    "zp.match_radius_arcsec": 1.0,
    "zp.zp_err_method": "standard_error",
    "zp.gaia_mag_min": 4.0,
    "zp.gaia_mag_max": 28.0,
    "zp.min_box_size_pix": 6000,
}
ADDED = {
    "patch_run.engine": "native",
    "patches.large_sources": True,
    "patch_run.executor": "process",
    "patch_run.dask_address": None,
    "patch_run.weak_priors": True,
    "patch_run.profiles": "exact",
    "patch_run.model_saturated": True,
    "epsf.builder": "native",
    "epsf.evaluate_at": "patch",
    "epsf.star_snr_min": 20.0,
    "epsf.psf_fits": None,
    "inputs.weight_suffix": None,
    "inputs.weight_type": "relative",
    "performance.max_memory_gb": "auto",
    "patch_run.max_group": 80,
    "patch_run.ignore_unmodelled": True,
    "patch_run.covariance": False,
    "patch_run.size_gradient": True,
    "inputs.wavelengths": None,
    "patch_run.sky": "prior",
    "inputs.preset": None,
    "zp.field": "auto",
    "inputs.hdu": None,
    "inputs.mask_suffix": None,
    "inputs.mask_reject": "all",
    "inputs.use_rejected": False,
    "inputs.keywords.zero_point": None,
    "inputs.keywords.filter": None,
    "inputs.keywords.gain": None,
    "inputs.keywords.noise": None,
    "inputs.keywords.saturation": None,
    "inputs.keywords.seeing": None,
    "inputs.keywords.fwhm": None,
    "inputs.keywords.exposure": None,
    "noise.correlation": "measured",
    "registration.catalog": "measured",
    "registration.bands": "measured",
}


def flat(tree, prefix=""):
    "Leaves of nested mappings by dotted key."
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def value_of(cfg, key):
    "The value at a dotted key, as YAML has it."
    for name in key.split("."):
        cfg = getattr(cfg, name)
    return list(cfg) if isinstance(cfg, tuple) else str(cfg) if isinstance(cfg, Path) else cfg


def same(left, right):
    "Equality that does not care how YAML spells a float."
    return left == right or isinstance(left, float) and isinstance(right, (str, int)) and left == float(right)


@pytest.fixture
def write(tmp_path):
    def write(text, paths=True):
        file = tmp_path / "tile.yaml"
        file.write_text((PATHS if paths else "") + text)
        return file

    return write


def message(file, overrides=None):
    with pytest.raises(UserError) as error:
        load_config(file, overrides)
    return str(error.value)


class TestOldFiles:
    def test_table_is_complete(self):
        assert len(flat(OLD)) == 155
        assert {info.key for info in describe_keys(Config)} == set(flat(OLD)) | set(ADDED)

    def test_complete_file_is_accepted(self, tmp_path):
        tree = yaml.safe_load(yaml.safe_dump(OLD))
        tree["inputs"] |= {
            "input_catalog": "a.csv",
            "image_list_file": "b.txt",
            "gaiaxp_synphot_csv": "c.csv",
        }
        tree["outputs"]["work_dir"] = "run"
        (tmp_path / "old.yaml").write_text(yaml.safe_dump(tree))
        cfg = load_config(tmp_path / "old.yaml")
        for key, value in flat(OLD).items():
            if not key.startswith(("inputs", "outputs")):
                assert same(value_of(cfg, key), value), key
        assert config_warnings(cfg) == []

    def test_defaults_are_old_or_announced(self):
        cfg = Config()
        for key, value in (flat(OLD) | CHANGED | ADDED).items():
            assert same(value_of(cfg, key), value), key

    def test_types_are_those_of_the_default(self):
        for info in describe_keys(Config):
            assert info.help and info.type and info.unit, info.key

    @pytest.mark.parametrize(
        "key, old, new",
        [
            ("crop.overlay_catalog", "true", "overlay.enabled"),
            ("crop.overlay_downsample_full", "2", "overlay.downsample_full"),
            ("crop.overlay_downsample_crop", "2", "native resolution"),
            ("crop.overlay_crop_enabled", "true", "overlay.zoom_enabled"),
            ("crop.overlay_crop_box", "[0, 1, 0, 1]", "overlay.zoom_box"),
            ("epsf.gaia_seed_sat_r", "5", "epsf.star_sat_check_r"),
            ("epsf.gaia_seed_sat_div", "1.3", "source_saturation_cut.saturation_divisor"),
            ("merge.wcs_fits", "a.fits", "wcs.fits in work_dir"),
        ],
    )
    def test_removed_keys_name_their_replacement(self, write, key, old, new):
        section, name = key.split(".")
        text = message(write(f"{section}:\n  {name}: {old}\n"))
        assert key in text and new in text

    @pytest.mark.parametrize(
        "text, key, cure",
        [
            (
                "moffat_psf: {fwhm_default_pix: 3.5}",
                "moffat_psf.fwhm_default_pix",
                "fallback_default_fwhm_pix",
            ),
            ("moffat_psf: {module_path: a.py}", "moffat_psf.module_path", "built in"),
            (
                "patch_inputs: {include_wcs_in_payload: true}",
                "patch_inputs.include_wcs_in_payload",
                "no effect",
            ),
            (
                "patch_inputs: {keep_payloads_in_memory: true}",
                "patch_inputs.keep_payloads_in_memory",
                "no effect",
            ),
            ("patch_run: {python_exe: /nowhere/python}", "patch_run.python_exe", sys.executable),
            ("patch_run: {dask_address: 'tcp://a:1'}", "patch_run.dask_address", "executor"),
        ],
    )
    def test_options_without_effect_warn_once(self, write, text, key, cure):
        (line,) = config_warnings(load_config(write(text)))
        assert key in line and cure in line

    def test_options_that_need_no_care_are_silent(self, write):
        """Keys whose help says that they are without effect are in every file of 0.7.0; changing them is no
        cause for alarm.
        """
        text = (
            "patch_run: {enable_staged_fit: false, r_ap: 4, eps_flux: 1, flag_maxiter_margin: 2, "
            "hybrid_psf_n: 3}"
        )
        assert config_warnings(load_config(write(text))) == []
        assert "this version" not in template()

    def test_running_interpreter_is_not_worth_a_warning(self, write):
        for name in ("python", sys.executable, None):
            assert config_warnings(load_config(write(""), {"patch_run.python_exe": name})) == []

    def test_strange_catalog_suffix_is_csv_with_a_warning(self, write):
        for name, count in (("a.csv", 0), ("a.ecsv", 0), ("a.fits", 0), ("a.parquet", 0), ("a.dat", 1)):
            assert len(config_warnings(load_config(write(""), {"outputs.final_catalog": name}))) == count


class TestValues:
    @pytest.mark.parametrize(
        "key, given, kept",
        [
            ("checks.wcs_tolerance.crval", "1e-4", 1e-4),
            ("patch_run.dlnp_stop", "1E-12", 1e-12),
            ("crop.margin", 10.0, 10),
            ("crop.margin", "10", 10),
            ("crop.margin", np.int64(10), 10),
            ("zp.clip_sigma", 3, 3.0),
            ("zp.clip_sigma", np.float32(3), 3.0),
            ("epsf.q_range", [1, "1.5"], (1.0, 1.5)),
            ("overlay.zoom_box", [0, 10, -5.0, 5], (0, 10, -5, 5)),
            ("performance.frame_prep_workers", "4", 4),
            ("performance.frame_prep_workers", "AUTO", "auto"),
            ("performance.max_memory_gb", 2, 2.0),
            ("epsf.star_sat_check_r", 0, 0),
            ("logging.level", "debug", "DEBUG"),
            ("patch_run.gal_model", "DEV", "dev"),
            ("zp.gaia_mag_max", float("inf"), float("inf")),
            ("patch_run.pos_max_shift_pix", None, None),
            ("inputs.gaiaxp_synphot_csv", None, None),
            ("logging.file", None, None),
            ("zp.gaia_pos_err_pix", None, None),
        ],
    )
    def test_accepted(self, write, key, given, kept):
        cfg = load_config(write(""), {key: given})
        for name in key.split("."):
            cfg = getattr(cfg, name)
        assert cfg == kept and type(cfg) is type(kept)

    @pytest.mark.parametrize(
        "key, given, expected",
        [
            ("crop.margin", True, "int >= 0"),
            ("crop.margin", 1.5, "int >= 0"),
            ("crop.margin", -1, "int >= 0"),
            ("crop.margin", None, "int >= 0"),
            ("crop.margin", [1], "int >= 0"),
            ("crop.margin", {"a": 1}, "int >= 0"),
            ("crop.enabled", 1, "true or false"),
            ("crop.enabled", "yes", "true or false"),
            ("zp.clip_sigma", True, "float > 0"),
            ("zp.clip_sigma", "three", "float > 0"),
            ("zp.clip_sigma", float("inf"), "float > 0"),
            ("zp.clip_sigma", float("nan"), "float > 0"),
            ("zp.gaia_mag_min", float("nan"), "not nan"),
            ("performance.frame_prep_workers", True, "int >= 1 or auto"),
            ("performance.frame_prep_workers", 0, "int >= 1 or auto"),
            ("patch_run.max_workers", "many", "int >= 1 or auto"),
            ("epsf.star_sat_check_r", True, "int >= 0 or auto"),
            ("performance.max_memory_gb", 0, "float > 0 or auto"),
            ("patch_run.engine", "turbo", "one of native, tractor"),
            ("patch_run.psf_model", "pixelised", "one of pixelized, hybrid, gaussian_mixture_from_stamp"),
            ("patch_run.psf_fallback_model", "x", "one of moffat, ncircular_gaussian, gaussian_mixture"),
            ("patch_run.gal_model", 3, "one of dev, exp, sersic, star"),
            ("patch_run.ncircular_gaussian_n", 4, "int >= 1, <= 3"),
            ("epsf.oversamp", 3, "int >= 1, <= 2"),
            ("epsf.oversamp", True, "int >= 1, <= 2"),
            ("epsf.psfstar_mode", "sep gaia", "one of sep, gaia, sep+gaia"),
            ("zp.zp_err_method", "mad", "one of standard_error, all_mad, bright_std"),
            ("logging.level", "LOUD", "one of DEBUG, INFO, WARNING, ERROR"),
            ("epsf.q_range", [1.3, 0.7], "low <= high"),
            ("epsf.q_range", [1.3], "list of 2 float"),
            ("epsf.q_range", 1.0, "list of 2 float"),
            ("epsf.q_range", [True, 2], "list of 2 float"),
            ("overlay.zoom_box", [0, 10, 5, 5], "x0 < x1 and y0 < y1"),
            ("overlay.zoom_box", [0, 1, 0, 1.5], "list of 4 int"),
            ("epsf.cutout_size", 60, "int odd, >= 5"),
            ("epsf.cutout_size", 3, "int odd, >= 5"),
            ("epsf.final_psf_size", 54, "int odd"),
            ("epsf.final_psf_size", 63, "<= cutout_size, which is 61"),
            ("epsf.recenter_boxsize", 8, "odd"),
            ("epsf.star_local_bkg_annulus_rout_pix", 20, "> star_local_bkg_annulus_rin"),
            ("epsf.gaia_mag_max", 9, ">= gaia_mag_min, which is 10.0"),
            ("epsf.gaia_forced_rmax_pix", 2, ">= gaia_forced_rmin"),
            ("zp.gaia_mag_max", 3, ">= gaia_mag_min"),
            ("zp.plot_mag_hi", 10, "> plot_mag_lo, which is 10.0"),
            ("patch_run.cutout_data_p_hi", 1, "> cutout_data_p_lo"),
            ("patch_run.cutout_data_p_hi", 101, "<= 100"),
            ("patch_run.sersic_n_init", 0.2, ">= 0.29"),
            ("patch_inputs.gzip_compresslevel", 10, "<= 9"),
            ("patch_inputs.save_patch_inputs", False, "expected true, because"),
            ("epsf.psf_fits", "psf.fits", "containing {band}"),
            ("plotting.dpi", 5, "int >= 10"),
            ("overlay.downsample_full", 0, "int >= 1"),
            ("epsf.background_boxsize", 7, "int >= 8"),
            ("outputs.epsf_dir", "", "path"),
            ("outputs.epsf_dir", 3, "path"),
            ("inputs.input_catalog", None, "path"),
            ("inputs.tile_name", 2026, "text"),
            ("logging.file", 3, "auto or path or null"),
            ("checks.wcs_tolerance", 3, "expected a section"),
            ("zp", [1], "expected a section"),
        ],
    )
    def test_refused_with_key_value_and_expectation(self, write, key, given, expected):
        (line,) = message(write(""), {key: given}).splitlines()
        assert f"{key} is {given!r}" in line and expected in line

    def test_default_in_conflict_with_what_was_set(self, write):
        text = message(write("epsf: {cutout_size: 41}"))
        assert "epsf.final_psf_size is 55; expected <= cutout_size, which is 41" in text

    def test_long_values_are_shortened(self, write):
        assert len(message(write(""), {"crop.margin": "x" * 500})) < 150

    def test_frozen_and_picklable(self, write):
        cfg = load_config(write(""))
        with pytest.raises(ValueError, match="frozen"):
            cfg.crop.margin = 3
        again = pickle.loads(pickle.dumps(cfg))
        assert again == cfg and again.source == cfg.source


class TestFiles:
    def test_all_problems_at_once_in_the_order_of_the_file(self, write):
        text = message(
            write(
                "crop:\n  margin: wide\n  margins: 3\ncrap: 1\nepsf:\n  ngrid: 0\n  ngrid: 2.5\n"
                "zp: 5\nmerge:\n  wcs_fits: a.fits\n"
            )
        )
        lines = text.splitlines()
        assert [line.split(": ")[0] for line in lines] == [
            f"tile.yaml line {n}" for n in (4, 5, 6, 9, 9, 10, 12)
        ]
        for line, key in zip(
            lines, ("crop.margin", "crop.margins", "crap", "epsf.ngrid", "epsf.ngrid", "zp", "merge.wcs")
        ):
            assert key in line
        assert "did you mean crop.margin?" in text and "appears twice, first on line 8" in text

    @pytest.mark.parametrize(
        "text, nearest",
        [
            ("crop: {margn: 1}", "crop.margin"),
            ("CROP: {margin: 1}", "crop"),
            ("epsf: {max_worker: 1}", "epsf.max_workers"),
            ("checks: {wcs_tolerance: {crvals: 1}}", "checks.wcs_tolerance.crval"),
            ("margin: 1", "crop.margin"),
            ("patch_run: {ngrids: 1}", "epsf.ngrid"),
        ],
    )
    def test_unknown_key_gets_the_nearest(self, write, text, nearest):
        assert f"did you mean {nearest}?" in message(write(text))

    def test_strange_keys(self, write):
        text = message(write("crop.margin: 1\nfoo.bar: {a: 1}\n2: 2\non: 3\n"))
        assert "write it as 'margin:' indented below 'crop:'" in text
        for key in ("foo.bar is unknown", ": 2 is unknown", "True is unknown"):
            assert key in text
        assert "not valid YAML" in message(write("? [a, b]\n: 1\n"))

    def test_missing_file_names_the_option(self, tmp_path):
        text = message(tmp_path / "none.yaml")
        assert "none.yaml" in text and "--config" in text

    def test_not_yaml_names_the_line(self, write):
        for broken in (
            "crop:\n  margin: [1, 2\nzp: {}\n",
            "crop:\n\tmargin: 1\n",
            "crop: {a: 1\n",
            "a: b: c\n",
        ):
            assert "tile.yaml line " in message(write(broken)) and "not valid YAML" in message(write(broken))
        assert "not valid YAML" in message(write("crop: \x01\n"))
        assert "not valid YAML" in message(write("---\na: 1\n---\nb: 2\n", paths=False))

    @pytest.mark.parametrize("text, kind", [("- a\n- b\n", "list"), ("hello\n", "str"), ("3\n", "int")])
    def test_root_must_be_a_mapping(self, write, text, kind):
        assert f"holds a {kind}" in message(write(text, paths=False))

    def test_empty_file_lists_the_paths_to_set(self, write):
        for empty in ("", "# nothing\n", "inputs:\noutputs:\n"):
            lines = message(write(empty, paths=False)).splitlines()
            assert len(lines) == 4 and all("set it to your file" in line for line in lines)
            assert "null for no Gaia table" in lines[2]

    def test_gaia_placeholder_is_no_table_when_nothing_uses_it(self, tmp_path):
        file = tmp_path / "tile.yaml"
        file.write_text(
            "inputs: {input_catalog: c.csv, image_list_file: i.txt}\noutputs: {work_dir: run}\n"
            "zp: {enabled: false}\nepsf: {psfstar_mode: sep}\n"
        )
        assert load_config(file).inputs.gaiaxp_synphot_csv is None
        assert "gaiaxp" in message(file, {"zp.enabled": True})

    def test_empty_sections_are_defaults(self, write):
        cfg = load_config(write("crop:\nchecks:\n  wcs_tolerance:\nzp: {}\n"))
        assert (cfg.crop, cfg.checks, cfg.zp) == (Config().crop, Config().checks, Config().zp)

    def test_anchors_and_merges_are_not_duplicates(self, write):
        cfg = load_config(
            write("crop: &a {margin: 3}\nbright_mask:\n  enabled: &b false\nzp: {enabled: *b}\n")
        )
        assert cfg.crop.margin == 3 and cfg.zp.enabled is False

    def test_loading_leaves_the_defaults_alone(self, write):
        before = Config().model_dump()
        overrides = {"outputs.work_dir": "other", "crop": {"margin": 3}, "crop.enabled": False}
        first = load_config(write("zp:\n  clip_sigma: 9\n"), overrides)
        assert (first.crop.margin, first.crop.enabled) == (3, False)
        assert overrides["crop"] == {"margin": 3}
        second = load_config(write(""))
        assert Config().model_dump() == before and second.zp == Config().zp
        assert second.outputs.work_dir.name == "run"

    def test_override_of_a_broken_section_is_told(self, write):
        assert "crop is 5; expected a section" in message(write("crop: 5\n"), {"crop.margin": 3})


class TestPaths:
    def test_where_relative_paths_start(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "conf").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "conf")
        (tmp_path / "conf" / "tile.yaml").write_text("""\
inputs: {input_catalog: ../cat.csv, image_list_file: lists/images.txt, gaiaxp_synphot_csv: ~/gaia.csv}
outputs: {work_dir: run, epsf_dir: /big/EPSFs, patches_dir: ../p, final_catalog: cat.fits}
logging: {file: logs/a.log}
moffat_psf: {module_path: m.py}
epsf: {psf_fits: "psf/{band}_{cell}.fits"}
""")
        monkeypatch.chdir(tmp_path)
        cfg, root = load_config("link/tile.yaml"), tmp_path.resolve()
        assert cfg.source == root / "conf" / "tile.yaml"
        assert cfg.inputs.input_catalog == root / "cat.csv"
        assert cfg.inputs.image_list_file == root / "conf" / "lists" / "images.txt"
        assert cfg.inputs.gaiaxp_synphot_csv == root / "home" / "gaia.csv"
        assert cfg.outputs.work_dir == root / "conf" / "run"
        assert cfg.outputs.epsf_dir == Path("/big/EPSFs")
        assert cfg.outputs.patches_dir == root / "conf" / "p"
        assert cfg.outputs.final_catalog == root / "conf" / "run" / "cat.fits"
        assert cfg.logging.file == root / "conf" / "run" / "logs" / "a.log"
        assert cfg.moffat_psf.module_path == root / "conf" / "m.py"
        assert cfg.epsf.psf_fits == root / "conf" / "psf" / "{band}_{cell}.fits"

    @pytest.mark.parametrize("path", ["path/to/input_catalog.csv", "/path/to/mine.csv", "./path/to/x.csv"])
    def test_placeholders_are_refused_with_other_problems(self, write, path):
        text = message(write("crop: {margin: x}\n"), {"inputs.input_catalog": path})
        assert "inputs.input_catalog" in text and "set it to your file" in text and "crop.margin" in text

    def test_folder_or_unreadable_file(self, tmp_path):
        assert "cannot be read" in message(tmp_path)
        (tmp_path / "binary").write_bytes(b"SIMPLE\xff\xfe")
        assert "UTF-8" in message(tmp_path / "binary")


class TestWriting:
    def test_template_is_the_defaults(self):
        tree = yaml.safe_load(template())
        assert set(flat(tree)) == {info.key for info in describe_keys(Config)}
        assert Config.model_validate(tree) == Config()
        assert list(tree) == [*OLD, "noise", "registration"]

    def test_template_explains_every_key(self):
        text = template()
        words = " ".join(text.replace("#", " ").split())
        for info in describe_keys(Config):
            assert f"{info.help} [{info.type}" in words, info.key
        assert max(map(len, text.splitlines())) <= 120

    def test_template_names_placeholders_only(self, tmp_path):
        lines = message(dump_config(tmp_path / "t.yaml")).splitlines()
        assert len(lines) == 4 and all(" line " in line for line in lines)

    def test_dump_keeps_existing_files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert dump_config() == tmp_path.resolve() / "sample_config.yaml"
        with pytest.raises(UserError, match="--force"):
            dump_config()
        dump_config(force=True)
        with pytest.raises(UserError, match="folder"):
            dump_config(tmp_path, force=True)

    def test_effective_configuration_round_trip(self, write, tmp_path):
        cfg = load_config(
            write("zp: {gaia_mag_max: .inf, gaia_pos_err_pix: null}\noverlay: {zoom_box: [1, 2, 3, 4]}\n")
        )
        (tmp_path / "used.yaml").write_text(to_yaml(cfg))
        assert load_config(tmp_path / "used.yaml").model_dump() == cfg.model_dump()

    def test_snapshot_never_overwrites(self, write, tmp_path):
        file, now = write("patch_run: {n_opt_iters: 7}\n"), datetime(2026, 5, 6, 7, 8, 9)
        copies = [snapshot(load_config(file), tmp_path / "run", now) for _ in range(2)]
        assert [copy.name for copy in copies] == [
            "config_used_20260506_070809.yaml",
            "config_used_20260506_070809_2.yaml",
        ]
        assert all(load_config(copy).model_dump() == load_config(file).model_dump() for copy in copies)
        assert snapshot(Config(), tmp_path / "run").exists()
