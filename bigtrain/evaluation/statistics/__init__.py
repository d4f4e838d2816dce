"""What metrics share: what is accumulated over the images of a pass, and the arithmetic of more than one metric.

Start at `accumulator.py`. Imported by the rest of evaluation/ only.
"""
