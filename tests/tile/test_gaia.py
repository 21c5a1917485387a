"""Gaia stars: text ids, one-to-one matches, injection."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from small_inputs import Field, noise, rows_at, sky

from tract7dt.core.errors import Problems, UserError
from tract7dt.inputs.gaia_table import load_gaia
from tract7dt.tile.gaia import augment_gaia, match_on_sky, write_augmented
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.layout import Layout

BIG = 5853498713190525696


def stars_at(positions, mag=15.0, **columns) -> pd.DataFrame:
    ra, dec = sky(*np.transpose(np.asarray(positions, float)))
    return pd.DataFrame(
        dict(
            source_id=[str(BIG + i) for i in range(len(ra))],
            ra=ra,
            dec=dec,
            phot_g_mean_mag=mag,
            mag_m400=20.0,
            mag_m425=20.0,
        )
        | columns
    )


@pytest.fixture
def field(tmp_path):
    return Field(tmp_path)


def augmented(field, patch_run=None, **zp):
    cfg = field.cfg(zp=dict(enabled=True, gaia_mag_min=8, gaia_mag_max=18) | zp, patch_run=patch_run or {})
    return augment_gaia(load_inputs(cfg), cfg)


class TestMatching:
    """Closest first, nobody twice."""

    def test_each_star_once(self, field):
        field.catalog(rows_at([(50, 50), (51, 50), (100, 50)]))
        field.gaia(stars_at([(50.4, 50), (100.2, 50)]))
        ids = augmented(field).catalog.gaia_source_id
        assert list(ids) == [str(BIG), "", str(BIG + 1)]

    def test_order_does_not_matter(self):
        rng = np.random.default_rng(8)
        rows, stars = (tuple(rng.uniform(0, 30 / 3600, (2, 300))) for _ in range(2))
        i, j = match_on_sky(rows, stars, 2.0)
        shuffle = rng.permutation(300)
        p, q = match_on_sky(tuple(v[shuffle] for v in rows), stars, 2.0)
        assert set(zip(i, j)) == set(zip(shuffle[p], q)) and len(set(i)) == len(set(j)) == len(i) > 100

    def test_greedy_reference(self):
        rng = np.random.default_rng(9)
        rows, stars = (rng.uniform(0, 20 / 3600, (2, n)) for n in (60, 50))
        distance = np.hypot(*(rows[:, :, None] - stars[:, None, :])) * 3600
        expected = []
        while distance.min() <= 1.5:
            a, b = np.unravel_index(distance.argmin(), distance.shape)
            expected.append((a, b))
            distance[a], distance[:, b] = 99, 99
        assert set(zip(*match_on_sky(tuple(rows), tuple(stars), 1.5))) == set(expected)

    def test_default_radius_is_one_arcsec(self, field):
        field.catalog(rows_at([(50, 50)]))
        field.gaia(stars_at([(53, 50)]))
        tile = augmented(field)
        assert list(tile.catalog.gaia_source_id) == ["", str(BIG)] and len(tile.catalog) == 2

    def test_across_the_zero_meridian(self):
        i, j = match_on_sky(
            (np.array([359.99999]), np.array([0.0])), (np.array([0.00001]), np.array([0.0])), 1.0
        )
        assert (list(i), list(j)) == ([0], [0])


class TestRows:
    """No row is lost, stars of excluded rows are handled."""

    def test_rows_without_coordinates_survive(self, field):
        table = rows_at([(50, 50), (60, 60)])
        table.loc[1, "RA"] = np.nan
        field.catalog(table)
        field.gaia(stars_at([(50, 50)]))
        tile = augmented(field)
        assert list(tile.catalog.excluded_reason) == ["", "no_coordinates"] and list(
            tile.catalog.gaia_source_id
        ) == [str(BIG), ""]

    def test_a_star_on_a_cropped_row_is_injected(self, field):
        field.sections["crop"] = dict(margin=10)
        field.catalog(rows_at([(9.4, 50), (80, 60)]))
        field.gaia(stars_at([(10.2, 50), (80, 60)]))
        tile = augmented(field)
        assert list(tile.catalog.gaia_source_id) == ["", str(BIG + 1), str(BIG)]
        assert list(tile.catalog._is_injected_gaia) == [False, False, True]

    @pytest.mark.parametrize("model_saturated", [True, False])
    def test_saturated_stars_are_injected_only_to_be_modelled(self, field, model_saturated):
        image = noise()
        image[50, 50] = 5000
        field.image("m400", image)
        field.catalog(rows_at([(120, 80), (52, 50)]))
        field.gaia(stars_at([(60, 50), (52, 50), (120, 30)]))
        tile = augmented(field, patch_run=dict(model_saturated=model_saturated))
        extra = model_saturated * 1
        assert list(tile.catalog.gaia_source_id) == ["", str(BIG + 1)] + [str(BIG)] * extra + [str(BIG + 2)]
        assert list(tile.catalog.excluded_reason) == ["", "saturation"] + ["saturation"] * extra + [""]

    def test_injected_rows(self, field):
        field.catalog(rows_at([(120, 80)], count=7, note="NA", good=True, FLUX_m400=0.0))
        field.gaia(stars_at([(30, 40)], mag_m425=[np.nan]))
        row = augmented(field).catalog.iloc[1]
        assert (
            row.ID,
            row.TYPE,
            row.POS_ERR,
            row._is_injected_gaia,
            row.excluded_any,
            row.excluded_reason,
        ) == (f"gaia_{BIG}", "STAR", 0.1, True, False, "")
        assert row.FLUX_m400 == pytest.approx(100) and row.FLUX_m425 == 0
        assert (row.x_pix_white, row.y_pix_white) == pytest.approx((30, 40))

    def test_no_position_prior(self, field):
        field.gaia(stars_at([(30, 40)]))
        assert "POS_ERR" not in augmented(field, gaia_pos_err_pix=None).catalog

    def test_backfill(self, field):
        field.catalog(rows_at([(30, 40), (60, 40), (90, 40)], FLUX_m400=[0.0, np.nan, 5.0]))
        field.gaia(stars_at([(30, 40), (60, 40), (90, 40)], mag_m400=[20, 17.5, 20]))
        catalog = augmented(field).catalog
        np.testing.assert_allclose(catalog.FLUX_m400, [100, 1000, 5])
        assert "FLUX_m425" not in catalog

    def test_injection_off(self, field):
        field.gaia(stars_at([(30, 40)]))
        tile = augmented(field, inject_gaia_sources=False)
        assert len(tile.catalog) == 1 and tile.gaia_box is not None

    def test_magnitude_range_and_empty_box(self, field, caplog):
        field.gaia(stars_at([(30, 40), (60, 40), (-300, 5)], mag=[5.0, 19, 15]))
        tile = augmented(field)
        assert tile.gaia_box is None and len(tile.catalog) == 1
        text = next(r.getMessage() for r in caplog.records if r.levelname == "WARNING")
        assert all(
            w in text
            for w in ("3 in the table", "1 with", "zp.gaia_mag_min", "zp.gaia_mag_max", "zp.min_box_size_pix")
        )

    def test_without_zero_points_nothing_happens(self, field):
        field.gaia(stars_at([(30, 40)]))
        cfg = field.cfg()
        tile = load_inputs(cfg)
        assert augment_gaia(tile, cfg) is tile


class TestFiles:
    """The table read, the catalog written."""

    def test_ids_never_pass_through_a_float(self, field):
        field.gaia(stars_at([(30, 40)]))
        cfg = field.cfg(zp=dict(enabled=True, gaia_mag_max=18))
        tile = augment_gaia(load_inputs(cfg), cfg)
        layout = dataclasses.replace(Layout.of(cfg.outputs), work_dir=field.folder / "work")
        path = write_augmented(tile, layout, cfg.inputs.input_catalog)
        assert path.name == "cat_with_Gaia.csv"
        assert list(pd.read_csv(path, dtype=str).gaia_source_id.fillna("")) == ["", str(BIG)]

    def test_user_columns_are_written_as_they_were(self, field):
        field.catalog("Id,ra,Dec,count,good,zip\n00019,150.0,2.0,7,True,0012\n")
        field.gaia(stars_at([(30, 40)]))
        cfg = field.cfg(zp=dict(enabled=True, gaia_mag_max=18))
        layout = dataclasses.replace(Layout.of(cfg.outputs), work_dir=field.folder / "work")
        lines = (
            write_augmented(augment_gaia(load_inputs(cfg), cfg), layout, cfg.inputs.input_catalog)
            .read_text()
            .splitlines()
        )
        added = (
            "excluded_crop,excluded_saturation,excluded_any,gaia_source_id,TYPE,FLUX_m400,FLUX_m425,POS_ERR"
        )
        assert lines[0] == f"Id,ra,Dec,count,good,zip,{added}"
        assert lines[1].startswith("00019,150.0,2.0,7,True,0012,False,False,False,")
        assert lines[2].startswith(f"gaia_{BIG},") and ",,,,False,False,False," in lines[2]

    def test_catalog_without_ids(self, field):
        field.catalog("RA,DEC\n150.0,2.0\n")
        field.gaia(stars_at([(30, 40)]))
        cfg = field.cfg(zp=dict(enabled=True, gaia_mag_max=18))
        tile = augment_gaia(load_inputs(cfg), cfg)
        layout = dataclasses.replace(Layout.of(cfg.outputs), work_dir=field.folder / "work")
        assert list(tile.catalog.ID) == ["000000", f"gaia_{BIG}"]
        assert "ID" not in pd.read_csv(write_augmented(tile, layout, cfg.inputs.input_catalog))

    def test_a_second_round_adds_nothing(self, field):
        field.gaia(stars_at([(30, 40)]))
        cfg = field.cfg(zp=dict(enabled=True, gaia_mag_max=18))
        layout = dataclasses.replace(Layout.of(cfg.outputs), work_dir=field.folder / "work")
        first = augment_gaia(load_inputs(cfg), cfg)
        (field.folder / "cat.csv").write_bytes(
            write_augmented(first, layout, cfg.inputs.input_catalog).read_bytes()
        )
        second = augment_gaia(load_inputs(cfg), cfg)
        assert list(second.catalog.ID) == list(first.catalog.ID) and list(
            second.catalog.gaia_source_id
        ) == list(first.catalog.gaia_source_id)

    @pytest.mark.parametrize("bad", ["1.25e18", "abc", ""])
    def test_source_id_must_be_an_integer(self, field, bad):
        field.gaia(stars_at([(30, 40), (40, 40)], source_id=["1", bad]))
        with pytest.raises(UserError, match=r"row 2.*source_id as integer"):
            load_gaia(field.folder / "gaia.csv")

    def test_repeated_source_id(self, field):
        field.gaia(stars_at([(30, 40), (40, 40)], source_id=["7", "7"]))
        problems = Problems()
        assert len(load_gaia(field.folder / "gaia.csv", (), problems)) == 1
        assert "row 2" in problems.warnings[0] and "source_id" in problems.warnings[0]

    def test_missing_columns_name_the_stage(self, field):
        field.gaia("ra,mag_m400\n150,15\n")
        problems = Problems()
        load_gaia(
            field.folder / "gaia.csv",
            ["m400", "m425"],
            problems,
            ["PSF stars", "augmentation and zero points"],
        )
        assert "dec, which PSF stars need" in problems.errors[0]
        assert (
            "dec, source_id, phot_g_mean_mag, which augmentation and zero points need" in problems.errors[1]
        )

    def test_missing_band(self, field):
        field.gaia(stars_at([(30, 40)]).drop(columns="mag_m425"))
        problems = Problems()
        load_gaia(field.folder / "gaia.csv", ["m400", "m425"], problems, ["PSF stars"])
        assert (
            "mag_m425" in problems.warnings[0] and "PSF stars" in problems.warnings[0] and not problems.errors
        )
