"""The table of the keys of config.yaml, from its schema: `python tests/support/config_table.py` writes it."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/configuration.md"
SCHEMA_PATH = ROOT / "workflow/schemas/config.schema.yaml"
TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
}


def describe_type(rules):
    if "anyOf" in rules:
        return ", ".join(describe_type(choice) for choice in rules["anyOf"])
    if isinstance(rules.get("type"), list):
        return ", ".join(TYPES[name] for name in rules["type"])
    values = rules.get("enum", [rules["const"]] if "const" in rules else [])
    return ", ".join(f"`{value}`" for value in values) or TYPES[rules["type"]]


def list_keys(schema, prefix=""):
    for key, rules in schema["properties"].items():
        if rules.get("type") != "object" or "properties" not in rules:
            missing = "must be set" if key in schema.get("required", []) else "from `device`"
            default = f"`{json.dumps(rules['default'])}`" if "default" in rules else missing
            cells = (f"`{prefix}{key}`", describe_type(rules), default, " ".join(rules["description"].split()))
            yield f"| {' | '.join(cells)} |"
        if "properties" in rules:
            yield from list_keys(rules, f"{prefix}{key}.")


def format_table():
    rows = list_keys(yaml.safe_load(SCHEMA_PATH.read_text()))
    return "\n".join(["| Key | Type | Default | Meaning |", "|---|---|---|---|", *rows])


def insert_table(page):
    return re.sub(r"\| Key \| Type .*\n(\|.*\n)*", lambda _: format_table() + "\n", page)


if __name__ == "__main__":
    PAGE.write_text(insert_table(PAGE.read_text()))
