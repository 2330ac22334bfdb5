"""Figures: reconstruction, color, surfaces, domains, nearest neighbors."""
