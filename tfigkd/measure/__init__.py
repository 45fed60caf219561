"""Measure predictions and explanations of any model, and what numbers of runs can be said to show."""
