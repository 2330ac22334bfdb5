"""``make gpu``: one command that tests and measures everything on a GPU within minutes, without a network."""
