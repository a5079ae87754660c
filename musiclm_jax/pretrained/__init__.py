"""Importers of public weights, and the small models that ship with the package."""
