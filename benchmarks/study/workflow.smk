# The unfinished steps of a study, which `engine.py` writes to `.plan.json`; the key of a step decides whether it is done.
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
            touch(_marker(_name)),
        localrule: _job["is_adopted"]
        priority: len(_plan["jobs"]) - _number
        params:  # evaluated now, while the text after `shell` is evaluated when the job runs
            command=_job["command_line"],
        threads: _job["demands"].pop("threads", 1)
        resources:
            **_job["demands"],
        shell:
            "{params.command}"
