"""Evaluation stages, and the distances, features and reference statistics that they use."""
