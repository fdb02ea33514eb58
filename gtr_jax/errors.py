"""The one exception that means "your input is wrong", as opposed to "gtr_jax is wrong"."""


class InputError(ValueError):
  """A file, flag, binding or array that the user has to change.

  The message is one line that says what is wrong, where (file and line), and what to do. The command line prints it
  without a traceback and exits with code 2.
  """
