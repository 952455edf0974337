"""The online half: the same encoders behind HTTP, on Ray Serve. See ARCHITECTURE.md."""
