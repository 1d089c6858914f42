"""The actors of CMIS Stream: when, where, keyed by what, acked how. What they compute lives in `cmis_stream`.

Each module exports `attach(app, runtime)` and is loaded by name by `cmis_stream.runtime`, loudly.
"""

OWNER = "cmis-stream"
"""The loader checks this: another installed package may be called `agents` too."""
