"""Sources of samples: arrays, folders of images, and tar shards."""
