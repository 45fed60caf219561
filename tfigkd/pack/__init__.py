"""Packages of finished runs: the command, what a package holds, and its model card; `edge/package.py` reads one."""
