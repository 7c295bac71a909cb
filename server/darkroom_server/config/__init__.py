"""Settings: their models, how they are read, and the rules between them."""
