"""Whoever asks the same has the same plan: the hash of what a plan depends on."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

from tests.planner.questions import question

from distserve.planner.machine import Machine
from distserve.planner.models import find_model
from distserve.planner.pace import Pace
from distserve.planner.plan import PlanRequest
from distserve.planner.profiles import load_profile
from distserve.planner.result import Slo
from distserve.planner.serving import Serving
from distserve.workload import ArrivalProcess, RequestSet


def test_the_hash_of_a_question_is_that_of_its_values_alone():
    """The literal keeps plans in use through a new release: it may change only when what a plan
    depends on does."""
    requests = RequestSet([100, 200], [10, 20], name="monday")
    profile = load_profile()
    asked = PlanRequest(
        find_model("13b"),
        profile,
        Slo(250.0, 100.0),
        requests,
        Machine([4, 2], max_accelerators=5),
        rate=2.0,
        options={"a": 1, "b": {"c": 2, "d": [3]}},
    )
    assert asked.inputs_hash == "08c119b5605d67be"
    entries = dict(reversed(list(profile.entries.items())))
    of_others = {key: times for key, times in entries.items() if key[0] == asked.model.name}
    same = replace(
        asked,
        slo=Slo(250, 100),
        rate=2,
        requests=replace(requests, name="tuesday", prefix_blocks=[[0], [0]]),
        machine=replace(asked.machine, nodes=(4, 2)),
        options={"b": {"d": [3], "c": 2}, "a": 1},
        profile=replace(profile, entries=of_others),
    )
    assert same.inputs_hash == asked.inputs_hash
    serving = {(asked.model.name, 1): Serving(pace=Pace((1.0, 1.2), (1.1, 1.0)))}
    changes = [
        {"rate": 3.0},
        {"profile": replace(profile, serving_by_model=serving)},
        {"max_ranks": 1},
        {"options": {}},
        {"arrivals": ArrivalProcess("burst", burst_size=4)},
        {"profile": replace(profile, kv_budget_bytes=1e9)},
        {"machine": replace(asked.machine, network="h100-dgx")},
        {"machine": replace(asked.machine, high_affinity=True)},
        {"requests": RequestSet([100, 201], [10, 20])},
    ]
    hashes = {replace(asked, **change).inputs_hash for change in changes} | {asked.inputs_hash}
    assert len(hashes) == len(changes) + 1


def test_a_hash_is_the_same_in_another_process(lengths):
    asked = question(lengths, Machine([8]))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).inputs_hash)"
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(asked),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert found.stdout.decode().strip() == asked.inputs_hash
