"""Moving what was learnt to other tasks. Imports ``core`` only; methods reach it as checkpoints."""
