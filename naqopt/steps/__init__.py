"""How far to go along a direction: the papers' step sizes and momenta."""
