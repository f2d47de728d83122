"""Models of a few parameters, each by the library that its users have."""
