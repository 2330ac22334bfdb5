"""Transfer of learned features to other tasks, and the quality tables of the methods.

Transfer imports no method: it reads checkpoints. The quality tables (``hole_quality``, ``upscaling_quality``,
``domains``) import the method that they measure. ``supervised`` trains the baseline that uses labels.
"""
