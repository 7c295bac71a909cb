"""Conditioners: ControlNets, textual inversion, prompt weighting."""
