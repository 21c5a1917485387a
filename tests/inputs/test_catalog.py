"""The source catalog: text stays text, mistakes get their answer."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tract7dt.config.schema import Config
from tract7dt.core.errors import Problems
from tract7dt.inputs.catalog import canonical_names, read_catalog, restore_spelling
from tract7dt.inputs.start_values import priors_from_errors, start_shapes

BANDS = {"m400": Path("a.fits"), "m425": Path("b.fits")}
HEAD = "ID,RA,DEC"


@pytest.fixture
def read(tmp_path):
    """Read a catalog given as text; returns it with the problems found."""

    def call(text, bands=BANDS, gal_model="exp"):
        path = tmp_path / "cat.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        problems = Problems()
        return read_catalog(path, bands, gal_model, problems), problems

    return call


def only(messages, *needles):
    assert len(messages) == 1, messages
    for needle in needles:
        assert needle in messages[0]


class TestText:
    """Nothing the user wrote is changed."""

    def test_ids(self, read):
        catalog, problems = read(f"{HEAD}\n00019,1,2\nNA,1,2\nnull,1,2\n1.0,1,2\n1e5,1,2\nNone,1,2\n")
        assert list(catalog.table.ID) == ["00019", "NA", "null", "1.0", "1e5", "None"]
        assert problems == Problems()

    def test_other_columns(self, read):
        catalog, _ = read(
            f"{HEAD},zip,long,count,flag,name,z\na,1,2,00012,1234567890123456789,7,True,NA,0.1\nb,1,2,00013,,8,False,,\n"
        )
        table = catalog.table
        assert list(table.zip) == ["00012", "00013"] and list(table.long) == ["1234567890123456789", ""]
        assert table["count"].dtype == "int64" and table.flag.dtype == bool and table.z.dtype == "float64"
        assert list(table.name) == ["NA", ""]
        assert (
            table.to_csv(index=False).splitlines()[1] == "a,1.0,2.0,00012,1234567890123456789,7,True,NA,0.1"
        )

    def test_byte_order_mark_and_blanks_in_header(self, read):
        catalog, problems = read("\ufeffID , RA,dec\nx,1,2\n".encode())
        assert list(catalog.table) == ["ID", "RA", "DEC"]
        assert catalog.spelling == {"ID": "ID", "RA": "RA", "DEC": "dec"}

    def test_spelling_comes_back(self, read):
        catalog, _ = read("Id,Ra,Dec,type,ELL,RE,sersic_N,flux_M400,Flux_m425_err\nx,1,2,exp,0.1,3,2,5,1\n")
        assert list(catalog.table) == [
            "ID",
            "RA",
            "DEC",
            "TYPE",
            "ELL",
            "Re",
            "SERSIC_n",
            "FLUX_m400",
            "FLUX_m425_ERR",
        ]
        assert list(restore_spelling(catalog.table, catalog.spelling)) == [
            "Id",
            "Ra",
            "Dec",
            "type",
            "ELL",
            "RE",
            "sersic_N",
            "flux_M400",
            "Flux_m425_err",
        ]

    def test_bands_that_differ_in_case(self):
        assert canonical_names(["flux_I", "flux_i_err", "FLUX_Z"], ["i", "I", "z"]) == {
            "flux_I": "FLUX_I",
            "flux_i_err": "FLUX_i_ERR",
            "FLUX_Z": "FLUX_z",
        }

    def test_row_numbers_where_there_are_no_ids(self, read):
        catalog, problems = read("RA,DEC\n1,2\n1,2\n")
        assert list(catalog.table.ID) == ["000000", "000001"] and not catalog.has_ids
        only(problems.warnings, "no ID column", "row numbers")


class TestErrors:
    """What stops a run."""

    def test_missing_file(self, tmp_path):
        problems = Problems()
        assert read_catalog(tmp_path / "gone.csv", BANDS, "exp", problems) is None
        only(problems.errors, "inputs.input_catalog", str(tmp_path / "gone.csv"))

    def test_unreadable(self, read):
        only(read(f"{HEAD}\na,1,2\nb,1,2,3\n")[1].errors, "cat.csv", "line 3")
        only(read(b"ID,RA,DEC\n\xff\xfe,1,2\n")[1].errors, "cat.csv", "utf-8")
        only(read("")[1].errors, "cat.csv", "inputs.input_catalog")

    def test_header_only(self, read):
        only(read(f"{HEAD}\n")[1].errors, "cat.csv", "at least one row")

    def test_no_positions(self, read):
        only(read("ID,alpha,delta\na,1,2\n")[1].errors, "RA and DEC", "alpha, delta", "any case")

    def test_columns_that_collide(self, read):
        only(read("ID,RA,DEC,ra\na,1,2,3\n")[1].errors, "'RA'", "'ra'", "rename one")
        only(read("ID,RA,DEC,z,z\na,1,2,3,4\n")[1].errors, "z", "rename one")

    def test_ids(self, read):
        only(read(f"{HEAD}\na,1,2\nb,1,2\na,1,2\n")[1].errors, "'a'", "rows 1, 3", "make IDs unique")
        only(
            read(f"{HEAD}\na,1,2\n ,1,2\n,1,2\n")[1].errors,
            "empty ID",
            "2 rows (row 2, row 3)",
            "make IDs unique",
        )

    def test_many_duplicates_are_one_message(self, read):
        text = "".join(f"{i // 2},1,2\n" for i in range(100))
        only(read(f"{HEAD}\n{text}")[1].errors, "and 40 more")

    def test_flux_of_a_band_without_image(self, read):
        only(
            read(f"{HEAD},FLUX_m400,FLUX_m450\na,1,2,3,4\n")[1].errors,
            "FLUX_m450",
            "m425",
            "m400 (a.fits)",
            "rename or drop",
        )
        only(read(f"{HEAD},FLUX_m450_ERR\na,1,2,3\n")[1].errors, "FLUX_m450_ERR")

    def test_several_at_once(self, read):
        _, problems = read(f"{HEAD},FLUX_m450\na,1,2,3\na,1,2,3\n,1,2,3\n")
        assert len(problems.errors) == 3


class TestWarnings:
    """What a run can live with, and says."""

    def test_position_names(self, read):
        only(read("ID,ra,Dec\na,1,2\n")[1].warnings, "'ra'", "'Dec'", "degrees")

    def test_positions(self, read):
        catalog, problems = read(f"{HEAD}\na,abc,2\nb,1,2\nc,1,-91\nd,,2\n")
        assert len(problems.warnings) == 2 and not problems.errors and len(catalog.table) == 4
        assert (
            "row 1 (ID a): abc" in problems.warnings[0]
            and "row 4 (ID d)" in problems.warnings[0]
            and "not fitted" in problems.warnings[0]
        )
        assert "row 3 (ID c): -91" in problems.warnings[1]

    def test_unknown_type(self, read):
        only(
            read(f"{HEAD},TYPE\na,1,2,QSO\nb,1,2,qso \nc,1,2,GAL\nd,1,2,\ne,1,2, star\n", gal_model="dev")[
                1
            ].warnings,
            "'QSO'",
            "2 rows",
            "DEV",
        )

    def test_flux_columns_of_others(self, read):
        catalog, problems = read(f"{HEAD},FLUX_AUTO,FLUX_RADIUS,FLUX_m400,FLUX_m400_ERR\na,1,2,3,4,5,6\n")
        only(problems.warnings, "FLUX_AUTO, FLUX_RADIUS", "carried through")
        assert not problems.errors and catalog.table.FLUX_AUTO[0] == 3

    def test_a_band_without_flux_column_is_fine(self, read):
        assert read(f"{HEAD},FLUX_m400\na,1,2,3\n")[1] == Problems()

    def test_errors_that_set_no_prior(self, read):
        only(
            read(f"{HEAD},POS_ERR\na,1,2,0\nb,1,2,\nc,1,2,inf\nd,1,2,0.1\n")[1].warnings,
            "POS_ERR",
            "3 rows",
            "no prior",
        )

    def test_sersic_index(self, read):
        _, problems = read(f"{HEAD},SERSIC_n\na,1,2,8\nb,1,2,0.1\nc,1,2,2\nd,1,2,-1\n")
        assert len(problems.warnings) == 3
        assert "row 2 (ID b): 0.1" in problems.warnings[0] and "clipped to 0.29" in problems.warnings[0]
        assert "row 1 (ID a): 8" in problems.warnings[1] and "clipped to 6.3" in problems.warnings[1]

    def test_shapes(self, read):
        catalog, problems = read(f"{HEAD},ELL,Re\na,1,2,1.0,0\nb,1,2,-0.1,3\nc,1,2,0,\n")
        assert len(problems.warnings) == 2
        assert (
            "ELL" in problems.warnings[0]
            and "2 rows" in problems.warnings[0]
            and "[0, 1)" in problems.warnings[0]
        )
        assert "Re" in problems.warnings[1] and "1 row" in problems.warnings[1]
        assert list(catalog.table.ELL) == [1.0, -0.1, 0.0]


class TestStart:
    """Start values and priors."""

    settings = Config().patch_run

    def test_missing_value_and_missing_column_start_alike(self):
        bare = pd.DataFrame(dict(TYPE=["EXP"]))
        blank = bare.assign(ELL=np.nan, THETA=np.nan, Re=np.nan, SERSIC_n=np.nan)
        for name, value in dict(ab=0.8, theta=0.0, re=3.0).items():
            assert (
                getattr(start_shapes(bare, self.settings), name)[0]
                == getattr(start_shapes(blank, self.settings), name)[0]
                == value
            )

    def test_sersic_start_is_legal(self):
        rows = pd.DataFrame(dict(TYPE="sersic", SERSIC_n=[8, 0.1, np.nan, -1, 2]))
        np.testing.assert_allclose(start_shapes(rows, self.settings).n, [6.3, 0.29, 3, 3, 2])

    @pytest.mark.parametrize("model", ["exp", "dev", "sersic", "star"])
    def test_default_model(self, model):
        settings = self.settings.model_copy(update=dict(gal_model=model))
        assert list(start_shapes(pd.DataFrame(dict(TYPE=["", "GAL", "??", "DEV"])), settings).kind) == [
            model.upper()
        ] * 3 + ["DEV"]
        assert list(start_shapes(pd.DataFrame(dict(RA=[1.0])), settings).kind) == [model.upper()]

    def test_one_of_two_shape_errors_is_no_prior(self):
        rows = pd.DataFrame(
            dict(TYPE="EXP", ELL=[0.3, 0.3], THETA=[20.0, 20], ELL_ERR=[0.1, 0.1], THETA_ERR=[np.nan, 5])
        )
        priors = priors_from_errors(rows, start_shapes(rows, self.settings), ())
        assert (
            np.isinf(priors.ee1[0])
            and np.isinf(priors.ee2[0])
            and np.isfinite([priors.ee1[1], priors.ee2[1]]).all()
        )
        assert priors.flux_sigma.shape == (2, 0)

    def test_ellipticity_prior_by_sampling(self):
        rng = np.random.default_rng(5)
        ell, theta = 0.35 + 0.01 * rng.normal(size=200_000), 40 + 0.5 * rng.normal(size=200_000)
        ee, angle = -np.log(1 - ell / (2 - ell)), -2 * np.radians(theta - 90)
        rows = pd.DataFrame(dict(TYPE="EXP", ELL=[0.35], THETA=[40.0], ELL_ERR=[0.01], THETA_ERR=[0.5]))
        priors = priors_from_errors(rows, start_shapes(rows, self.settings), ())
        np.testing.assert_allclose(
            [priors.ee1[0], priors.ee2[0]],
            [np.std(ee * np.cos(angle)), np.std(ee * np.sin(angle))],
            rtol=0.01,
        )
