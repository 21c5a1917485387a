"""Pictures; each module is imported when it is first asked for: what draws nothing loads no matplotlib."""

from importlib import import_module

MODULES = ("base", "calibration", "epsf", "field", "palette", "patch", "sheet", "stars", "thumbnails")


def __getattr__(name: str):
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
