"""Measures of the predictions and explanations of any model, and statistics over several runs."""
