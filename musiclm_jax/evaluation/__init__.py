"""Measures of how well a trained model does, on data of the user's choice."""
