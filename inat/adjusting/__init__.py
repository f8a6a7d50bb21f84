"""Moves a prediction from the class prior that its logits carry to another, without its model."""
