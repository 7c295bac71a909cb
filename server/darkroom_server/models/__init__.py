"""The models and assets that are offered, and what of them is in memory."""
