"""WebDataset tar shards in, Parquet embeddings out."""

__version__ = "0.1.0"
