"""The batch pipeline: slides in object storage to Parquet embeddings."""
