"""Methods that learn by telling images apart, or by predicting one view or patch from another, one file each."""
