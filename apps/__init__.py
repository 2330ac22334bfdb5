"""Programs that use a trained network, and one that shows the built-in scenes."""
