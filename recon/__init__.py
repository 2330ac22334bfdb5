"""Methods that learn by reconstructing images, one file each."""
