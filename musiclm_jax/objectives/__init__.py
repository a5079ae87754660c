"""A model and its losses, behind the one signature that train.py calls."""
