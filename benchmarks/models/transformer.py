"""A small transformer that reads symbols and predicts each next one."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """Causal attention and two linear layers, each behind a layer norm and beside a shortcut.

    Attributes:
      norms: in front of the attention and of the linear layers.
      attention: causal, of several heads.
      expand: linear, to four times the width.
      contract: linear, back to the width.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, values: jax.Array) -> jax.Array:
        """Maps (batch, time, width) to the same."""
        mask = nnx.make_causal_mask(jnp.ones(values.shape[:2]))
        values += self.attention(self.norms[0](values), mask=mask)
        return values + self.contract(nnx.gelu(self.expand(self.norms[1](values))))


class Transformer(nnx.Module):
    """Blocks on top of each other between an embedding and a linear head.

    Attributes:
      symbols: the embedding of the symbols.
      places: the embedding of the places in the sequence, learnt.
      blocks: see the class.
      norm: behind the last block.
      head: linear, to the logarithms of the next symbol's probabilities.
    """

    def __init__(
        self, symbols: int, width: int, heads: int, depth: int, length: int, *, rngs: nnx.Rngs
    ):
        self.symbols = nnx.Embed(symbols, width, rngs=rngs)
        self.places = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, symbols, rngs=rngs)

    def __call__(self, codes: jax.Array) -> jax.Array:
        """Maps codes (batch, time) to (batch, time, symbols)."""
        values = self.symbols(codes) + self.places(jnp.arange(codes.shape[1]))
        for block in self.blocks:
            values = block(values)
        return self.head(self.norm(values))
