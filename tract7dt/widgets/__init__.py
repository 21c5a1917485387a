"""Inspectors of a finished run.

Their names live in `import tract7dt as t7`; notebooks of version 1.0.0, which take
them from here, go on working.
"""

INSPECTORS = ("RunInspector", "EPSFInspector", "PatchInspector", "SourceInspector", "ZeroPointInspector")


def __getattr__(name: str):
    "An inspector, looked up when it is first asked for."
    if name not in INSPECTORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import tract7dt

    return getattr(tract7dt, name)
