"""Methods that fill holes without learning."""
