"""A model under a steering: generation, activations, logits."""
