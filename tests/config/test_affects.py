"""Each key says which products it changes; none can be added that forgets it."""

import pytest

from tract7dt.config.keys import describe_keys, key
from tract7dt.config.schema import Config

PRODUCTS = {"payloads", "epsfs", "fits", "tractor fits", "patch pictures"}
KEYS = describe_keys(Config)


def test_a_key_cannot_be_silent():
    with pytest.raises(TypeError, match="affects"):
        key(3, "Some number.")


@pytest.mark.parametrize("info", KEYS, ids=[info.key for info in KEYS])
def test_every_key_names_products_that_exist(info):
    assert isinstance(info.affects, tuple) and set(info.affects) <= PRODUCTS


def test_every_product_hangs_on_keys():
    assert {name for info in KEYS for name in info.affects} == PRODUCTS


def test_settings_of_a_product_are_the_keys_that_affect_it():
    cfg = Config()
    for product in PRODUCTS:
        assert list(cfg.affecting(product)) == [info.key for info in KEYS if product in info.affects]
    assert cfg.affecting("payloads")["crop.margin"] == cfg.crop.margin
    assert cfg.affecting("payloads", "fits").items() >= cfg.affecting("fits").items()


def test_what_moves_or_speeds_up_a_run_makes_nothing_stale():
    free = {info.key for info in KEYS if not info.affects}
    assert {
        "logging.level",
        "performance.max_memory_gb",
        "patch_run.max_workers",
        "outputs.work_dir",
        "inputs.tile_name",
    } <= free
    assert not free & {
        "inputs.input_catalog",
        "crop.margin",
        "epsf.star_snr_min",
        "patch_run.gal_model",
        "zp.gaia_mag_max",
    }
