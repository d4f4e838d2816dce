"""The promises of the README that every family keeps, over tests/families_table.py.

matrix.py says which runs there are and in which launch each is made; a test names those that it compares (`needs`), and only
reads their folders. A launch makes the runs of all families one after another, for the whole test run, at the first test that
needs one of them. `pytest --family-costs` says what a family costs.
"""
