"""Times of steerings beside the unsteered model: in every run, and over batch sizes and prompt lengths."""
