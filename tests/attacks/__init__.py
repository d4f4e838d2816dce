"""Attacks on the commands, as tools that run whole and as parts in the slow suite.

python -m tests.attacks.ranks      a rank of two stops, dies or loops in each phase of work
python -m tests.attacks.values     hostile values for every key of every family
python -m tests.attacks.hostile    folders and files that somebody else made
python -m tests.attacks.deaths     a command dies before each of its operations on files
"""
