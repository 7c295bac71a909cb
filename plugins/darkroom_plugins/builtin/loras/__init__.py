"""LoRA files: names of layers, dialects, and the updates that they make of layers."""
