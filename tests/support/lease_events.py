"""Real processes that lease GPUs of the fake driver, and what they say they held."""

import json

JOBS = "tests/support/lease_jobs.py"


def run_jobs(world, name, *numbers, timeout_s=300):
    said = world.run(world.repository / JOBS, name, *map(json.dumps, numbers), timeout_s=timeout_s)
    events = [json.loads(line) for line in said.splitlines()]
    assert not [event for event in events if event["what"] == "error"], said
    return sorted(events, key=lambda event: event["time_s"])


def most_at_once(events):
    """Return how many jobs held each device at the same time, at most."""
    held, most = {}, {}
    for event in events:
        if event["what"] in ("take", "leave"):
            uuid = event["uuid"]
            held[uuid] = held.get(uuid, 0) + (1 if event["what"] == "take" else -1)
            most[uuid] = max(most.get(uuid, 0), held[uuid])
    return most
