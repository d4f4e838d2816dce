"""What is learned: one module per family, in sub-packages by kind. `family` holds what all of them share.

Training, evaluation, inference and exchange import `family` and open a family by its kind (`find_family`); no module outside
this package and networks/ names one. Families import networks, and nothing of training, evaluation or exchange.
"""
