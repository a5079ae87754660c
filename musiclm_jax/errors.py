"""L0. The one exception for bad input: shown as one line at the command line, never as a traceback."""


class UserError(ValueError):
  """Something the user gave cannot be used: names the thing, what came and what was wanted."""
