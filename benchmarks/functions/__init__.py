"""Functions to be minimised, by formulas."""
