"""What is trained: networks in Flax nnx."""
