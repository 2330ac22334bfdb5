"""Learning by reconstruction: each method is one file."""
