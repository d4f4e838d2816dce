"""Trackers of other tools that show a run: TensorBoard in this process, the rest in processes of their own.

metrics.jsonl, the pictures and the evaluations in the run folder stay the truth. Whatever a tracker does wrong costs a warning.
Imported by the trainer and launch/train.py.
"""
