"""How images begin: from text, from a picture, under a mask."""
