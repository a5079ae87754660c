"""L5. How fast this machine trains and decodes, and transformers beside it."""
