"""What the command line makes of the labels by which Prometheus selects deployments' objects."""

import argparse
from collections.abc import Mapping

import pytest

from distserve.cli import operator as command
from distserve.cli.main import UsageError


def parsed(*words: str) -> Mapping[str, str]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.render_settings(parser.parse_args(words)).monitoring_labels


def test_labels() -> None:
    assert parsed() == {}
    assert parsed("--monitoring-labels", "release=prometheus") == {"release": "prometheus"}
    several = parsed("--monitoring-labels=a.b-c.example/D_e.f=1,empty=")
    assert several == {"a.b-c.example/D_e.f": "1", "empty": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("release", "release is no label; write NAME=VALUE"),
        ("=prometheus", "=prometheus is no label"),
        ("re lease=x", "re lease=x is no label"),
        ("release=a b", "release=a b is no label"),
        ("release=a=b", "release=a=b is no label"),
        ("Upper.example/name=x", "is no label"),
        ("a/b/c=x", "is no label"),
        (f"{'n' * 64}=x", "is no label"),
        (f"n={'x' * 64}", "is no label"),
        ("ok=1,-a=b", "-a=b is no label"),
        ("distserve.io/unit=u0", "choose a name that does not begin with distserve.io/"),
        ("a=1,b=2,a=3", "give each one value"),
    ],
)
def test_what_is_none_is_said_with_its_cure(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parsed(f"--monitoring-labels={text}")
    (line,) = str(refused.value).splitlines()
    assert line.startswith("--monitoring-labels: ") and said in line
