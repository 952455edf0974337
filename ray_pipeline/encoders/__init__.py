"""Uint8 pixels to vectors: what a model is, its weights, and running it."""
