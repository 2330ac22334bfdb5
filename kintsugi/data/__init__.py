"""Data: where images come from (folders, torchvision's sets, the built-in scenes), and how batches are made."""
