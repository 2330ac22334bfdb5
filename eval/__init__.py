"""Moving what was learned to other tasks. Imports ``core`` only; methods reach it as checkpoints."""
