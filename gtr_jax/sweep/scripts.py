"""A sweep as commands to run by hand, and as Slurm jobs."""

import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from gtr_jax.io.atomic import write_text
from gtr_jax.sweep.plan import Job, Plan
from gtr_jax.sweep.run import log_of, marker_of, started_of

_SUBMIT = """\
#!/bin/bash
# Submits the sweep; what is given goes to every sbatch: bash {path} --partition=gpu --gpus=8 --time=24:00:00
set -euo pipefail
cd {folder}
"""
_GROUP = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={logs}/slurm-%A_%a.log
case "$SLURM_ARRAY_TASK_ID" in
"""


def commands(plan: Plan, done: Iterable[str] = ()) -> str:
  """All commands in an order in which they can be run, as a shell script."""
  runs_of = defaultdict(list)
  for run in plan.runs:
    for name in run.jobs:
      runs_of[name].append(run.name)
  lines = ["#!/bin/bash", "# The commands of a sweep, each after those that it needs."]
  for job in plan.jobs.values():
    about = [f"for {', '.join(runs_of[job.name])}"] if job.name in runs_of else []
    about += [f"after {', '.join(job.after)}"] if job.after else []
    about += ["done"] if job.name in done else []
    lines += ["", f"# {'; '.join([job.name, *about])}", " ".join(["gtr-jax", *map(_quoted, job.words)])]
  return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
  """For a shell, as one would type it."""
  return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def write_slurm(jobs: Mapping[str, Job], output: str, collect: list[str]) -> Path:
  """Writes a script that submits jobs as Slurm arrays, and one script for each array.

  Jobs that need the same ones are one array, which starts once these are done (afterok): a job that fails stops only
  those that need it.

  Args:
    jobs: that are not done.
    output: the sweep's folder.
    collect: the words of the command that comes last, whatever has failed.

  Returns:
    The script that submits all.
  """
  folder = Path(output, "slurm")
  for path in (folder, *(Path(output, name) for name in ("logs", "started", "done"))):
    path.mkdir(parents=True, exist_ok=True)
  groups: dict[tuple[str, ...], list[Job]] = defaultdict(list)
  for job in jobs.values():
    groups[tuple(name for name in job.after if name in jobs)].append(job)
  submit = [_SUBMIT.format(path=folder / "submit.sh", folder=shlex.quote(os.getcwd()))]
  place: dict[str, str] = {}  # job -> its Slurm job id, in terms of the script's variables
  for number, (after, members) in enumerate(groups.items()):
    path = folder / f"group_{number}.sh"
    cases = [f"{i}) {_shell(output, job)} ;;" for i, job in enumerate(members)]
    write_text(path, _GROUP.format(name=f"sweep_{number}", logs=Path(output, "logs")) + "\n".join(cases) + "\nesac\n")
    needs = f" --dependency=afterok:{':'.join(place[name] for name in after)} --kill-on-invalid-dep=yes" * bool(after)
    submit.append(f'group_{number}=$(sbatch --parsable --array=0-{len(members) - 1}{needs} "$@" '
                  f"{shlex.quote(str(path))} | cut -d ';' -f 1)\n")
    place.update({job.name: f"${{group_{number}}}_{i}" for i, job in enumerate(members)})
  all_groups = "".join(f":${{group_{number}}}" for number in range(len(groups)))
  wrap = shlex.quote(shlex.join([sys.executable, "-P", "-m", "gtr_jax", *collect]))
  submit.append(f'sbatch --dependency=afterany{all_groups} --output={shlex.quote(str(Path(output, "logs")))}/'
                f'slurm-%j.log "$@" --wrap={wrap}\n')
  path = folder / "submit.sh"
  write_text(path, "".join(submit))
  return path


def _shell(output: str, job: Job) -> str:
  command = shlex.join([sys.executable, "-P", "-m", "gtr_jax", *job.words])
  inputs = shlex.join([str(marker_of(output, name)) for name in job.after] or ["/dev/null"])
  marker = shlex.quote(str(marker_of(output, job.name)))
  return (f"rm -f {marker} && cat {inputs} > {shlex.quote(str(started_of(output, job.name)))} && "
          f"{command} >> {shlex.quote(str(log_of(output, job)))} 2>&1 && "
          f"{{ echo {shlex.quote(job.stamp)}; date +%s%N; }} > {marker}.tmp && mv {marker}.tmp {marker}")
