"""Methods that learn by telling images apart, or by predicting one view from another."""
