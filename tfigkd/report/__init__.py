"""What a run or a study shows for its work: a table, `report.md`, and `report.html`, which opens from disk.

`stage.py` is the stage; `table.py` has a run's figures in words, `facts.py` all that the stages have left for a page;
`charts.py` and its like draw it; `run_page.py` and `study_page.py` are the two kinds of page, `page.py` is HTML itself.
"""
