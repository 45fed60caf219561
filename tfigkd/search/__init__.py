"""Hyper-parameter search by KerasTuner."""
