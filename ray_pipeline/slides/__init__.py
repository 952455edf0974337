"""Cloud bytes to uint8 pixels: opening slides, finding tissue, reading tiles."""
