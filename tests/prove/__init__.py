"""The proof of reliability: one file per proof, run by `make prove`.

Each module has a docstring that says what is tried, COUNT, QUICK and `prove(folder, count)`.
"""
