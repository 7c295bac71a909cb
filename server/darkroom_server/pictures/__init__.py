"""Image files: decoding untrusted ones, encoding results."""
