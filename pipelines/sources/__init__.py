"""Sources of samples: arrays, folders of images, tar shards, and parquet files."""
