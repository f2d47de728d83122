"""Nesterov- and momentum-accelerated quasi-Newton training for JAX."""
