"""Several predictions into one, without their models."""
