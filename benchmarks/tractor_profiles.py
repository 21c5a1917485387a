"""Galaxy profiles of an installed Tractor, for the native engine: what is left then is
rendering and solving.
"""

from contextlib import contextmanager

import numpy as np

from tract7dt.fit import render
from tract7dt.fit.problem import Kind
from tract7dt.fit.tractor.scene import require_tractor, tractor_source

STEP, LOW, HIGH = 0.01, 0.30, 6.29


def mixture(kind: int, n: float):
    """Amplitudes and variances (in units of the squared half-light radius) of a profile, as the installed
    Tractor has them.
    """
    profile = tractor_source(
        require_tractor(), kind, [0, 0, 0, 0, 0, float(np.clip(n, LOW, HIGH))], [1.0]
    ).getProfile()
    variance = np.asarray(profile.var, float)
    return np.asarray(profile.amp, float), variance[:, 0, 0] if variance.ndim == 3 else variance


def transform(kind: int, n: float, Q):
    "f(Q) and df/dQ of a mixture of Gaussians."
    f, slope = np.zeros_like(Q), np.zeros_like(Q)
    for amplitude, variance in zip(*mixture(kind, n)):
        term = (amplitude * np.exp(-2 * np.pi**2 * variance * Q)).astype(Q.dtype)
        f += term
        slope -= (2 * np.pi**2 * variance * term).astype(Q.dtype)
    return f, slope


def law(kind: int, n: float, Q):
    "f(Q), df/dQ and df/dn (None for fixed laws), as the native engine asks for them."
    if kind != Kind.SERSIC:
        return *transform(kind, n, Q), None
    low, high = max(n - STEP, LOW), min(n + STEP, HIGH)
    by_n = (transform(kind, high, Q)[0] - transform(kind, low, Q)[0]) / np.float32(high - low)
    return *transform(kind, n, Q), by_n


@contextmanager
def tractor_profiles():
    "Inside, the native engine's option `profiles: mixture` means Tractor's mixtures."
    ours = render.PROFILES["mixture"]
    render.PROFILES["mixture"] = law
    try:
        yield
    finally:
        render.PROFILES["mixture"] = ours
