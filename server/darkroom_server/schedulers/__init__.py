"""Stepping diffusers' noise schedulers: evaluations per step, and tables of coefficients."""
