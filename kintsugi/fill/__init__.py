"""What mends without learning."""
