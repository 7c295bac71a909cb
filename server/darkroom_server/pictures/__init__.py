"""Image files: decoding of untrusted input, encoding of results."""
