"""The stages of a run, one module each, and what runs them.

Only these, studies, search and commands know the whole `Config` and the `Workdir`.
"""
