"""Networks that methods share: backbones with one feature contract, decoders, discriminators."""
