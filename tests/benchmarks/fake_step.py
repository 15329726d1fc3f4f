"""Stands in for every program of the suite in the study's tests: a real process that does what its config says.

Understood in the config: ``sleep`` (seconds), ``fail`` (a line to end with), ``output`` (a directory to make;
with ``model_name`` and ``benchmarks`` result files to write there), ``count`` (a file that gets a line per run),
``until`` (a file to wait for).
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import yaml

flag = sys.argv.index("--config")
words, config_file = sys.argv[1:flag], sys.argv[flag + 1]
config = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
print(" ".join(words), "begins", flush=True)
if config.get("count"):
    with Path(config["count"]).open("a", encoding="utf-8") as stream:
        stream.write(f"{config.get('model_name') or config.get('output')}\n")
if config.get("output") and "benchmarks" not in config:
    output = Path(config["output"])
    output.mkdir(parents=True, exist_ok=True)
    with (output / "visits.txt").open("a", encoding="utf-8") as stream:
        stream.write("visit\n")
deadline = time.monotonic() + float(config.get("sleep", 0))
while time.monotonic() < deadline or (config.get("until") and not Path(config["until"]).exists()):
    time.sleep(0.02)
if config.get("fail"):
    print(config["fail"], flush=True)
    sys.exit(3)
failed = []
for benchmark in config.get("benchmarks", []):
    path = Path(config["output"]) / config["model_name"] / f"{benchmark['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    reason = benchmark.get("judge_model") if str(benchmark.get("judge_model", "")).startswith("broken") else None
    score = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 100, "clusters": 100, "higher_is_better": True}
    score |= {"scale": 100, "label": "score", "ci_method": "wilson", "aggregation": None, "columns": []}
    result = {"schema": 1, "model_name": config["model_name"], "benchmark": benchmark["name"]}
    result |= {"benchmark_type": "mllm", "created": ""}
    result |= {"status": "failed" if reason else "ok", "failure_reason": reason, "model": {}, "items": None}
    result |= {"fingerprint": hashlib.sha256(b"{}").hexdigest()}  # of a protocol without entries
    result |= {"metrics": {} if reason else {"score": score}, "primary": ["score"]}
    path.write_text(json.dumps(result), encoding="utf-8")
    failed += [f"{benchmark['name']} ({reason})"] if reason else []
if failed:
    print(f"clips-bench: failed: {', '.join(failed)}", flush=True)
    sys.exit(2)
if config.get("output") and "benchmarks" not in config:
    (output / "made.txt").write_text("made\n", encoding="utf-8")
