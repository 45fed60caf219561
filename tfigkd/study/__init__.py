"""Studies: several arms with several seeds, their result rows, statistics and pages."""
