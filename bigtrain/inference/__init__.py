"""A trained model in use: opened from a run or an export and sampled (`model`), evaluated (`evaluation`), and observed at
intervals during training (`observers`: pictures and evaluations). plan.py and the commands in launch/ import this.
"""
