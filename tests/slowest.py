"""The slowest files, slowest first: they run first, so that a run does not end with one long test on one core.

By `pytest --durations=0` of a full run. A file that is slow and not listed costs nothing but time.
"""

SLOWEST = (
    "tests/faults/test_ingress.py",
    "tests/deploy/test_systemd.py",
    "tests/faults/test_run.py",
    "tests/training/test_bench_gpu.py",
    "tests/integration/test_brokers.py",
    "tests/integration/test_stack.py",
    "tests/training/test_evaluations.py",
    "tests/faults/test_clock_jump.py",
    "tests/attacks/test_attacks.py",
    "tests/faults/test_kills.py",
    "tests/faults/test_cohort.py",
    "tests/integration/test_flower.py",
    "tests/faults/test_restore.py",
    "tests/faults/test_pauses.py",
    "tests/docs/test_commands.py",
    "examples/celery/test_shop.py",
    "tests/faults/test_every_setup.py",
    "tests/training/test_bench_quality.py",
    "tests/integration/test_webhooks.py",
    "tests/training/test_training_several.py",
    "tests/integration/test_doctor.py",
    "tests/faults/test_remote_kills.py",
    "tests/integration/test_remote.py",
    "tests/faults/test_callback_storm.py",
    "tests/faults/test_broker_outage.py",
    "tests/hostile/test_messages.py",
    "tests/integration/test_traces.py",
    "tests/docs/test_move.py",
)
_PLACES = {name: place for place, name in enumerate(SLOWEST)}


def place(path: str) -> int:
    """Where the tests of a file come: those of the slowest file first, all files that are not listed last."""
    return _PLACES.get(path, len(_PLACES))
