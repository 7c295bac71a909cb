"""Helpers for diffusers' noise schedulers: evaluations per step, and tables of step coefficients."""
