"""Benchmarks: speed and quality compared with other libraries. Figures are in bench/results."""
