# The unfinished steps of a study, which `clips-bench study run` writes to `.plan.json`. Snakemake decides what starts
# when and where; whether a step is done is decided by its key (`state.py`), so that it keeps no state of its own.
import json
import re

with open(config["plan"], encoding="utf-8") as _file:
    _plan = json.load(_file)


def _marker(name):
    return f"steps/{name}/.done"


rule all:
    input:
        [_marker(_name) for _name in _plan["jobs"]],


for _number, (_name, _job) in enumerate(_plan["jobs"].items()):

    rule:
        name:
            f"{re.sub(r'[^A-Za-z0-9]', '_', _name)}_{_number}"
        input:
            [_marker(_parent) for _parent in _job["parents"]],
        output:
            touch(_marker(_name)),  # no output of the step, which Snakemake would delete before a training resumes
        priority: _job["priority"]
        params:  # evaluated now, while the text after `shell` is evaluated when the job runs
            command=_job["command_line"],
        threads: _job["demands"].pop("threads", 1)
        resources:
            **_job["demands"],
        shell:
            "exec {params.command}"
