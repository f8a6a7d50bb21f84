"""From photos to logits: forward passes and prediction files."""
