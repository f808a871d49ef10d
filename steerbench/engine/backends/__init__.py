"""Engines that generate in place of transformers, and what each of them can carry."""
