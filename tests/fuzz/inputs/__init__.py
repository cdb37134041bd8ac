"""Cases of damaged inputs: configs, folders of images, shards, and the lists beside them."""
