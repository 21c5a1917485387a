"""Where the time of a fit goes."""

import cProfile
import pstats
from collections import Counter
from pathlib import Path

import one_thread  # noqa: F401  before NumPy

ROOMS = {
    "footprints": "set-up",
    "psf": "rendering",
    "render": "rendering",
    "profiles": "rendering",
    "shapes": "rendering",
    "normal": "blocks and linear solves",
    "steps": "steps and priors",
    "optimise": "steps and priors",
    "errors": "errors and quality",
    "native": "set-up",
    "problem": "set-up",
}
PARTS = {
    "pair_block": "Gram products",
    "band_products": "Gram products",
    "project": "Gram products",
    "_flat": "Gram products",
    "curvature": "assembly of the Schur complement",
    "coupling": "assembly of the Schur complement",
}


def _ours(key) -> bool:
    return "tract7dt" in Path(key[0]).parts


def own_seconds(profile: cProfile.Profile) -> Counter:
    """Seconds in each of our functions (module, name), with the library functions that it calls but not with
    our own.
    """
    stats, own = pstats.Stats(profile).stats, Counter()
    for key, (_, _, _, cumulative, callers) in stats.items():
        if not _ours(key):
            continue
        own[Path(key[0]).stem, key[2]] += cumulative
        for caller, numbers in callers.items():
            if _ours(caller):
                own[Path(caller[0]).stem, caller[2]] -= numbers[3]
    return own


def part_of(module: str, name: str) -> str:
    "The part of the fit a function belongs to."
    return PARTS.get(name) or ROOMS.get(module, module)


def profile(work) -> Counter:
    "Run `work` under the profiler; seconds of each of our functions."
    profiler = cProfile.Profile()
    profiler.runcall(work)
    return own_seconds(profiler)


def report(own: Counter, lines: int = 15) -> str:
    "Shares of the parts of the fit, and of its most expensive functions."
    total, parts = sum(own.values()), Counter()
    for (module, name), seconds in own.items():
        parts[part_of(module, name)] += seconds
    out = [f"{1e3 * total:.0f} ms under the profiler, in percent:"]
    out += [f"  {100 * seconds / total:5.1f}  {part}" for part, seconds in parts.most_common()]
    out += ["functions, with the library calls they make:"]
    out += [f"  {100 * s / total:5.1f}  {module}.{name}" for (module, name), s in own.most_common(lines)]
    return "\n".join(out)
