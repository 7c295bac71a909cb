"""Request validation: messages to a checked `Request`, or all violations at once."""
