"""Writes artifact/tests/golden/schema.json: what the jsonschema package says of answers that hold no null, empty text or
empty list (those count as absent with us), and for `date` with its format checker.

    python3 -m venv VENV && VENV/bin/pip install jsonschema
    VENV/bin/python tests/reference/schema_golden.py
"""

import itertools
import json
import pathlib

from jsonschema import Draft202012Validator

OUT = pathlib.Path(__file__).resolve().parents[2] / "artifact/tests/golden/schema.json"

FIELDS = [
    {"type": "string"},
    {"type": "string", "minLength": 2, "maxLength": 3},
    {"type": "string", "pattern": "^[a-z]+$"},
    {"type": "string", "pattern": "o"},
    {"type": "string", "enum": ["no", "café"]},
    {"type": "string", "format": "date"},
    {"type": "integer"},
    {"type": "integer", "minimum": 1, "maximum": 20},
    {"type": "number", "minimum": 0.5},
    {"type": "number", "maximum": -1},
    {"type": "integer", "enum": [1, 4]},
    {"enum": [1.5, 4]},
    {"type": "boolean"},
    {"type": "boolean", "enum": [True]},
    {"type": "array", "items": {"type": "string", "minLength": 2}},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
]
VALUES = [
    "no", "café", "o", "Foo", "four", "\u00e9\u00e9\u00e9", "2026-02-28", "2026-02-29", "2024-02-29", "2026-13-01", "1900-02-29",
    "2026-4-01", "20260401", 0, 1, 4, 20, 21, -1, -2, 4.0, 4.5, 0.5, 1.5, 1e300, -0.25, True, False, ["no"], ["n"], ["no", 1], [1, 2],
    [1, 2.0, 3], [1, 2, 3, 4], [1, 2.5], {"a": 1},
]


def main():
    cases = []
    checker = Draft202012Validator.FORMAT_CHECKER
    for rules, value in itertools.product(FIELDS, VALUES):
        schema = {"type": "object", "properties": {"x": rules}}
        valid = Draft202012Validator(schema, format_checker=checker).is_valid({"x": value})
        cases.append([rules, value, valid])
    whole = []
    for required, additional in itertools.product([[], ["x"], ["x", "y"]], [True, False]):
        schema = {
            "type": "object",
            "properties": {"x": {"type": "string"}, "y": {"type": "integer"}},
            "required": required,
            "additionalProperties": additional,
        }
        for answer in [{}, {"x": "a"}, {"y": 1}, {"x": "a", "y": 1}, {"x": "a", "y": 1, "z": 2}, {"z": [1]}, 3, "x", [1]]:
            whole.append([schema, answer, Draft202012Validator(schema).is_valid(answer)])
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    more = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in whole)
    OUT.write_text(f'{{"values": [\n{lines}\n], "answers": [\n{more}\n]}}\n', encoding="utf-8")
    print(OUT, len(cases) + len(whole), sum(valid for *_, valid in cases + whole))


if __name__ == "__main__":
    main()
