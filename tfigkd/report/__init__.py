"""The pages, tables and Markdown of runs and Pareto fronts, and what the pages of studies share with them.

`facts.py` holds the results of a run, `table.py` its figures as a table; `charts.py`, `class_charts.py` and
`training_charts.py` draw. `run_page.py` and `pareto_page.py` prepare what a page shows, `page.py` renders it: HTML and
sentences are in `templates/`, style and script in `page.css` and `page.js`.
"""
