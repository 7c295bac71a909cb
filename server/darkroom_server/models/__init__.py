"""The catalog of models and assets, and their residency in memory."""
