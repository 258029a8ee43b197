"""Image data: sources, splits, batches."""
