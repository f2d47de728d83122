"""What the site's build makes of the package, the notebooks and the results."""
