"""Compare losses: train each with the same data, seeds and strength, and report the results."""
