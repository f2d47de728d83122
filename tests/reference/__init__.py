"""Plain NumPy float64 transcriptions of the papers' listings, the yardstick of the tests."""
