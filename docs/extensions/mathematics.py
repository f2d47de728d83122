"""Displayed formulas with several columns, aligned as in the papers.

Sphinx sets a formula with `&` in a `split`, which knows one column of signs; several stand too
close then. In an `aligned` they keep their distance.
"""

from typing import Any

from docutils import nodes
from sphinx.transforms import SphinxTransform


class Align(SphinxTransform):
    """Sets formulas with `&` in an `aligned` of their own."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Changes the formulas of a document."""
        del kwargs
        for node in self.document.findall(nodes.math_block):
            text = node.astext().strip()
            if "&" in text and "\\begin{" not in text.split("&")[0]:
                aligned = f"\\begin{{aligned}}\n{text}\n\\end{{aligned}}"
                node[:] = [nodes.Text(aligned)]


def setup(app: Any) -> dict[str, bool]:
    """Registers the transform."""
    app.add_transform(Align)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
