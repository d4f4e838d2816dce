"""One file a metric, of its name. `metric.py` is their protocol, `registry.py` lists them.

Imported by the rest of evaluation/ and by inference/ only.
"""
