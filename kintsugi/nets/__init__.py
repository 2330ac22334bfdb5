"""Networks that methods share: encoders with one contract, decoders, discriminators."""
