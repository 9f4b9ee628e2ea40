"""Generation, scoring and logits of a trained model."""
