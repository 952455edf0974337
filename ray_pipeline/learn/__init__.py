"""Learning from an output: slides from bags of tile vectors, tiles from their vectors."""
