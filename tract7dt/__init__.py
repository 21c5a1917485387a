"""Multi-band forward-modelling photometry for the 7-Dimensional Telescope.

    import tract7dt as t7

Everything at once, as on the command line; what comes back shows itself in a notebook:

    result = t7.run("config.yaml")          # a path, or what load_config returns
    result.catalog                          # one row per source
    result.epsf.plot("m650")                # the ePSF of a band

Stage by stage, without files between them:

    cfg = t7.load_config("config.yaml", {"epsf.star_snr_min": 40})
    tile = t7.load_inputs(cfg)              # images, catalog, masks
    epsfs = t7.build_epsf(tile, cfg)        # one PSF model for each band
    fit = t7.fit_patch_at(tile, epsfs, cfg, "00041")

A finished run, with widgets:

    t7.EPSFInspector("config.yaml")         # PatchInspector, SourceInspector, ZeroPointInspector;
    t7.RunInspector("config.yaml")          # all of them, a tab each

Arrays only, without a catalog or a configuration:

    t7.forced_photometry(images, sigmas, psfs, t7.Sources(t7.Kind.STAR, x, y))

Commands
    run, run_many, check, dump_config, run_epsf, build_patches, build_patch_inputs, run_patches, merge,
    compute_zp, model, report, make_sample, download_sample: the same names, with dashes, on the command line
    (`tract7dt help`).
Stages
    load_config, load_inputs, augment_gaia, mask_bright_sources, build_epsf, divide_tile (its patches),
    fit_patch_at
Products
    read_catalog (a final catalog, with types); shown (a figure as a light picture, in a notebook)
Inspectors
    RunInspector, EPSFInspector, PatchInspector, SourceInspector, ZeroPointInspector
Arrays
    forced_photometry, fit_arrays (positions and shapes may be free), FitProblem, FitOptions, BandData,
    Sources, Kind, PixelPSF, moffat_psf, gaussian_psf, describe_flags
Errors
    UserError: something for you to mend, said in one line

Names are looked up when they are first used, so that `import tract7dt` costs nothing. Behind them are
sub-packages, one for each folder of `nbs/`, in the order of the data: core, config, workdir, inputs, tile,
epsf, fit, patches, results, plots, pipeline, reports, widgets, cli, sample.
"""

from importlib import import_module

__version__ = "1.0.0"

_HOME = {
    "tract7dt.config.load": ("load_config", "dump_config"),
    "tract7dt.core.errors": ("UserError",),
    "tract7dt.core.display": ("shown",),
    "tract7dt.tile.load": ("load_inputs",),
    "tract7dt.tile.gaia": ("augment_gaia",),
    "tract7dt.tile.bright_mask": ("mask_bright_sources",),
    "tract7dt.epsf.build": ("build_epsf",),
    "tract7dt.patches.fit": ("fit_patch_at",),
    "tract7dt.results.merge": ("read_catalog",),
    "tract7dt.pipeline.commands": (
        "run",
        "check",
        "run_epsf",
        "build_patches",
        "build_patch_inputs",
        "run_patches",
        "merge",
        "compute_zp",
        "model",
    ),
    "tract7dt.pipeline.batch": ("run_many",),
    "tract7dt.reports.page": ("report",),
    "tract7dt.sample.make": ("make_sample",),
    "tract7dt.sample.download": ("download_sample",),
    "tract7dt.widgets.run": ("RunInspector",),
    "tract7dt.widgets.epsf": ("EPSFInspector",),
    "tract7dt.widgets.patch": ("PatchInspector",),
    "tract7dt.widgets.source": ("SourceInspector",),
    "tract7dt.widgets.zero_points": ("ZeroPointInspector",),
    "tract7dt.fit.forced": ("forced_photometry",),
    "tract7dt.fit.problem": ("FitProblem", "BandData", "Sources", "Kind", "FitOptions", "PixelPSF"),
    "tract7dt.fit.psf": ("moffat_psf", "gaussian_psf"),
    "tract7dt.fit.flags": ("describe_flags",),
}
_RENAMED = {
    "fit_arrays": ("tract7dt.fit.engine", "fit"),  # `fit` is the name of a room
    "divide_tile": ("tract7dt.patches.geometry", "build_patches"),  # `build_patches` is a command
}
_PLACE = {name: (module, name) for module, names in _HOME.items() for name in names} | _RENAMED

__all__ = sorted(_PLACE)


def __getattr__(name: str):
    """A name of the front door, from the module that defines it, kept for the next time (PEP 562)."""
    if name not in _PLACE:
        raise AttributeError(
            f"module 'tract7dt' has no attribute {name!r}; help(tract7dt) lists what it offers"
        )
    module, attribute = _PLACE[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What the front door offers, for completion."""
    return sorted({*globals(), *__all__})
