"""Selectors of DeviceClasses: the part of CEL that they are written in, asked of one device.

    device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'

https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/ has what a
selector may use. What is not known here raises NotUnderstood when it is read, so that nobody counts
by half an expression.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from distserve.placement.quantities import parse_quantity

Match = Callable[[Mapping[str, Any]], bool]
"""Of a device, as `device_facts` gives it."""

_Value = Any
_Step = Callable[[Mapping[str, Any]], _Value]

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>r?"(?:[^"\\]|\\.)*"|r?'(?:[^'\\]|\\.)*')
  | (?P<number>\d+(?:\.\d+)?)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<sign>&&|\|\||==|!=|<=|>=|[<>!.,()\[\]-])
    )""",
    re.VERBOSE,
)
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
    "in": lambda a, b: a in b,
}
_METHODS: Mapping[str, Callable[[Any, Any], _Value]] = {
    "startsWith": lambda text, part: text.startswith(part),
    "endsWith": lambda text, part: text.endswith(part),
    "contains": lambda text, part: part in text,
    "matches": lambda text, pattern: re.search(pattern, text) is not None,
    "compareTo": lambda a, b: (a > b) - (a < b),
    "isGreaterThan": lambda a, b: bool(a > b),
    "isLessThan": lambda a, b: bool(a < b),
}
_CONSTANTS: Mapping[str, _Value] = {"true": True, "false": False}
_LACKING = (KeyError, TypeError, ValueError, AttributeError, re.error)
"""What looking at something that a device does not have comes to; CEL calls it an error."""


class NotUnderstood(Exception):
    """The expression uses more of CEL than is known here."""


def device_facts(driver: str, device: Mapping[str, Any]) -> Mapping[str, Any]:
    """A ResourceSlice's device as the variable `device` shows it to a selector: attributes and
    capacity by their domain, which is the driver's where a name has none."""
    attributes: dict[str, dict[str, _Value]] = {}
    for name, found in (device.get("attributes") or {}).items():
        domain, _, short = name.rpartition("/")
        attributes.setdefault(domain or driver, {})[short] = next(iter(found.values()))
    capacity: dict[str, dict[str, _Value]] = {}
    for name, found in (device.get("capacity") or {}).items():
        domain, _, short = name.rpartition("/")
        capacity.setdefault(domain or driver, {})[short] = parse_quantity(str(found["value"]))
    return {
        "driver": driver,
        "attributes": attributes,
        "capacity": capacity,
        "allowMultipleAllocations": bool(device.get("allowMultipleAllocations")),
    }


@lru_cache(maxsize=256)
def selector(expression: str) -> Match:
    """Raises NotUnderstood. A device that lacks what is asked about does not match."""
    reader = _Reader(expression, _tokens(expression))
    found = reader.alternatives()
    if reader.here:
        raise NotUnderstood(f"{expression!r}: {reader.here!r} is not expected there")

    def match(device: Mapping[str, Any]) -> bool:
        try:
            return found(device) is True
        except _LACKING:
            return False

    return match


def _tokens(expression: str) -> list[str]:
    tokens, at, end = [], 0, len(expression.rstrip())
    while at < end:
        found = _TOKEN.match(expression, at)
        if found is None:
            raise NotUnderstood(f"{expression!r}: {expression[at:].strip()[:12]!r} is not known")
        tokens.append(found[0].strip())
        at = found.end()
    return tokens


@dataclass
class _Reader:
    """Recursive descent, loosest operator first; each method returns a step of the evaluation."""

    expression: str
    tokens: Sequence[str]
    at: int = field(default=0)

    @property
    def here(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        """The token that is next; of `wanted`, where any are given."""
        token = self.here
        if not token or (wanted and token not in wanted):
            raise NotUnderstood(f"{self.expression!r}: {' or '.join(wanted) or 'more'} is expected")
        self.at += 1
        return token

    def alternatives(self) -> _Step:
        return self._joined("||", self._all_of, decides=True)

    def _all_of(self) -> _Step:
        return self._joined("&&", self._comparison, decides=False)

    def _joined(self, sign: str, inner: Callable[[], _Step], *, decides: bool) -> _Step:
        """One side that decides is enough, even where the other one is an error."""
        steps = [inner()]
        while self.here == sign:
            self.take()
            steps.append(inner())
        if len(steps) == 1:
            return steps[0]

        def step(device: Mapping[str, Any]) -> _Value:
            lacking = None
            for one in steps:
                try:
                    if one(device) is decides:
                        return decides
                except _LACKING as error:
                    lacking = error
            if lacking is not None:
                raise lacking
            return not decides

        return step

    def _comparison(self) -> _Step:
        left = self._negation()
        if self.here not in _COMPARE:
            return left
        compare, right = _COMPARE[self.take()], self._negation()
        return lambda device: compare(left(device), right(device))

    def _negation(self) -> _Step:
        if self.here == "!":
            self.take()
            inner = self._negation()
            return lambda device: not inner(device)
        if self.here == "-":
            self.take()
            number = self._negation()
            return lambda device: -number(device)
        return self._member()

    def _member(self) -> _Step:
        step = self._primary()
        while self.here in (".", "["):
            step = self._method_or_field(step) if self.take() == "." else self._index(step)
        return step

    def _method_or_field(self, holder: _Step) -> _Step:
        name = self.take()
        if self.here != "(":
            return lambda device: holder(device)[name]
        if name not in _METHODS:
            raise NotUnderstood(f"{self.expression!r}: the method {name} is not known")
        self.take("(")
        argument = self.alternatives()
        self.take(")")
        if name == "matches":
            self._check_pattern(argument)
        method = _METHODS[name]
        return lambda device: method(holder(device), argument(device))

    def _check_pattern(self, argument: _Step) -> None:
        """CEL's patterns are RE2's, of which Python does not know all."""
        try:
            pattern = argument({})
            known = "[:" not in pattern  # Of RE2's [[:alpha:]] Python makes something else.
        except _LACKING:
            return  # It is the device's.
        try:
            re.compile(pattern if known else "")
        except (re.error, RecursionError, OverflowError):
            known = False
        if not known:
            raise NotUnderstood(f"{self.expression!r}: the pattern {pattern!r} is not known")

    def _index(self, holder: _Step) -> _Step:
        """Of a domain that the device has nothing of: an empty map, as in Kubernetes."""
        key = self.alternatives()
        self.take("]")

        def step(device: Mapping[str, Any]) -> _Value:
            found = holder(device)
            return found.get(key(device), {}) if isinstance(found, Mapping) else found[key(device)]

        return step

    def _primary(self) -> _Step:
        token = self.take()
        if token == "(":
            inner = self.alternatives()
            self.take(")")
            return inner
        if token == "[":
            return self._list()
        if token == "device":
            return lambda device: device
        if token == "has" and self.here == "(":
            return self._has()
        if token == "quantity" and self.here == "(":
            text = self._argument()
            return lambda device: parse_quantity(text(device))
        if token in _CONSTANTS:
            return _always(_CONSTANTS[token])
        if token[0] in "\"'":
            return _always(re.sub(r"\\(.)", r"\1", token[1:-1]))
        if token[:2] in ('r"', "r'"):
            return _always(token[2:-1])
        if token[0].isdigit():
            return _always(float(token) if "." in token else int(token))
        raise NotUnderstood(f"{self.expression!r}: {token!r} is not known")

    def _argument(self) -> _Step:
        self.take("(")
        found = self.alternatives()
        self.take(")")
        return found

    def _has(self) -> _Step:
        field_of = self._argument()

        def step(device: Mapping[str, Any]) -> bool:
            try:
                field_of(device)
            except _LACKING:
                return False
            return True

        return step

    def _list(self) -> _Step:
        items: list[_Step] = []
        while self.here != "]":
            items.append(self.alternatives())
            if self.take(",", "]") == "]":
                return lambda device: [one(device) for one in items]
        self.take("]")
        return lambda device: [one(device) for one in items]


def _always(value: _Value) -> _Step:
    return lambda device: value
