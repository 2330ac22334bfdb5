"""Crops, colors and masks: parameters drawn on the CPU, applied in batch on the device."""
