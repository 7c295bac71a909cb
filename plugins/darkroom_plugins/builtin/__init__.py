"""The plugins in the box, written with the contract alone."""
