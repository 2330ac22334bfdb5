"""The built-in world: rooms, furniture, textures, tracer, rendering."""
