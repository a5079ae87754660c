"""Flax modules: hyperparameters in a frozen config, parameters in a plain tree."""
