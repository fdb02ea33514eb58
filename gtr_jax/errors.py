"""The errors that the command line prints as one line: what is not a bug of gtr_jax."""


class InputError(ValueError):
  """A file, flag, binding or array that the user has to change.

  The message is one line that says what is wrong, where (file and line), and what to do. The command line prints it
  without a traceback and exits with code 2.
  """


class TrainingError(RuntimeError):
  """Training cannot go on; one line says why and what to do. The command line prints it and exits with code 1."""


def first_line(error: BaseException) -> str:
  """Of what another library says, what a line of ours has room for; its type where it says nothing."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
