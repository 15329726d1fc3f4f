"""MLLM benchmarks by lmms-eval's own task definitions and scorers.

lmms_benchmarks (a benchmark) → offline_tasks (its questions) → llava_model (answers) → evaluate_task (their scores) →
task_metrics (the metrics of the result); precomputed answers enter by score_answers.
"""
