"""Server settings: pydantic models, sources and precedence, cross-field validation."""
