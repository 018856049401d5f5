"""Reading, checking, splitting and augmenting data."""
