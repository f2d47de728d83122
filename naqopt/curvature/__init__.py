"""What is known of the Hessian: pure state and pure functions, no Optax."""
