"""Studies: arms times seeds, their rows, statistics and pages."""
