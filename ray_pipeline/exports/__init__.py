"""Committed slides in the formats of other tools: HDF5, AnnData, GeoJSON, Iceberg, Lance."""
