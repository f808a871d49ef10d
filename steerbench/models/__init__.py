"""Frozen models: language models, rewards, encoders."""
