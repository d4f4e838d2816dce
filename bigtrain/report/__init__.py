"""One self-contained page of one or several runs, for launch/report.py.

Start at `page.py`. `reading.py` opens run folders (`rows.py`: metrics.jsonl), `thinning.py` makes few points of many rows,
`pictures.py` makes pictures fit, the sections build the page by `markup.py`; assets/ holds its style, its script and uPlot.
Whatever a run folder holds may have been written by somebody else. Imported by launch/ only.
"""
