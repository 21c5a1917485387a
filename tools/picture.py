"""Draw the picture of the README: data, model and residual of a patch of the sample tile."""

import tempfile
from pathlib import Path

from tract7dt.config.load import load_config
from tract7dt.epsf.build import build_epsf, write_epsf
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.geometry import build_patches
from tract7dt.patches.payload import build_patch_inputs
from tract7dt.patches.problem import load_psfs
from tract7dt.plots.patch import colour_triptych, views_of
from tract7dt.tile.bright_mask import mask_bright_sources
from tract7dt.tile.gaia import augment_gaia
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.layout import Layout

ROOT = Path(__file__).resolve().parents[1]
PATCH, RED, GREEN, BLUE = "r01_c01_pr02_pc00", "m850", "m650", "m500"


def main() -> None:
    """Fit the patch as the pipeline does and save the picture."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config(ROOT / "sample_data" / "config.yaml", {"outputs.work_dir": folder})
        layout = Layout.of(cfg.outputs)
        tile = mask_bright_sources(augment_gaia(load_inputs(cfg), cfg), cfg)
        write_epsf(build_epsf(tile, cfg), layout)
        patch = next(p for p in build_patches(tile, cfg) if p.tag == PATCH)
        (payload,) = build_patch_inputs(tile, [patch], cfg)
        fit = fit_patch(payload, load_psfs(payload, layout, cfg), cfg)
    views = {view.name: view for view in views_of(fit)}
    figure = colour_triptych(views[RED], views[GREEN], views[BLUE], weights=(1, 0.8, 1.1), soft=6)
    (ROOT / "nbs" / "images").mkdir(exist_ok=True)
    figure.savefig(ROOT / "nbs" / "images" / "data_model_residual.png", dpi=100)


if __name__ == "__main__":
    main()
