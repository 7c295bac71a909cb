"""The step engine: batching, denoising, scheduler steps, decoding, on one thread."""
