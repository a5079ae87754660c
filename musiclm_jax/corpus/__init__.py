"""A captioned corpus rendered from scores and from compositions of its own."""
