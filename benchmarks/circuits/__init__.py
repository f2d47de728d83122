"""Circuits by formulas of the textbooks, whose behaviour networks are to learn."""
