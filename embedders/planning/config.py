"""config.yaml -> a checked configuration. Used by the Snakefile; imports nothing heavy."""

import difflib
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from embedders.errors import ConfigError
from embedders.planning.shard_names import find_unusable, make_visible

# In a clone; an installed package has no workflow.
SCHEMA = Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml"


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a configuration and check it, as `check_config`.

    Raises:
        ConfigError: There is no such file, it is not YAML, or it is not a valid configuration.
    """
    if not SCHEMA.is_file():
        raise ConfigError(f"{str(SCHEMA)!r} is not there; expected the clone that the package was installed from")
    try:
        config = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {str(path)!r}; name the configuration with --configfile") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, Mapping):
        raise ConfigError(f"{str(path)!r} has no keys; expected shards, embedder and others, as in config.yaml")
    return check_config(config, SCHEMA)


def check_config(config: Mapping[str, Any], schema_path: str | Path) -> dict[str, Any]:
    """Check a configuration against its JSON schema, and return it with the defaults filled in.

    Raises:
        ConfigError: A key is unknown (the message has the nearest known one) or missing, or a value is invalid.
    """
    schema = yaml.safe_load(Path(schema_path).read_text())
    config = _fill_defaults(config, schema)
    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(config), key=lambda error: len(error.path)):
        place = ".".join(str(part) for part in error.path)
        known = error.schema.get("properties", {})
        if error.validator == "additionalProperties":
            unknown = sorted(set(error.instance) - set(known))[0]
            near = difflib.get_close_matches(unknown, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(known)}"
            raise ConfigError(f"config: unknown key {'.'.join(filter(None, [place, unknown]))!r}; {hint}")
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            raise ConfigError(f"config: key {'.'.join(filter(None, [place, missing]))!r} is missing; set it")
        described = " ".join(error.schema.get("description", error.message).split()).rstrip(".")
        raise ConfigError(f"config: {place} is {error.instance!r}; expected: {described}{_hint_at_quotes(error)}")
    config.setdefault("gpu", 0 if config["device"] == "cpu" else 1)
    return _expand_home(config)


def take_command_line(
    config: Mapping[str, Any],
    config_files: Sequence[Path],
    config_args: Sequence[str],
    given: Mapping[str, Any],
    schema_path: str | Path,
) -> dict[str, Any]:
    """Return the configuration with whole keys replaced by those of the command line. Snakemake would merge them.

    Args:
        config: The configuration as Snakemake merged it.
        config_files: The files of --configfile.
        config_args: The arguments of --config, as `key=value`.
        given: The same arguments as Snakemake parsed them.
        schema_path: The schema of the configuration.

    Raises:
        ConfigError: There are two files, or a key is given twice.
    """
    if len(config_files) > 1:
        named = ", ".join(repr(str(file)) for file in config_files)
        raise ConfigError(
            f"--configfile: {len(config_files)} files are given ({named}); expected one, because files are not "
            "merged; write all keys into one file, or set single keys with --config"
        )
    keys = yaml.safe_load(Path(schema_path).read_text())["properties"]
    texts: dict[str, Any] = {}
    for key, _, value in (arg.partition("=") for arg in config_args):
        if key in texts:
            raise ConfigError(
                f"--config: {key!r} is given twice; expected once; quote the value so that the shell does not expand "
                f"it, for example --config '{key}=data/{{00000..00099}}.tar'"
            )
        texts[key] = value.strip("'\"")
    types = {key: keys.get(key, {}).get("type") for key in texts}
    # Snakemake reads `output_dir=2024_01` as a number, with quotes or without, and each number in a mapping as text.
    nested = {key: _parse(key, text) for key, text in texts.items() if types[key] in ("object", "array")}
    texts = {key: text for key, text in texts.items() if types[key] == "string"}
    return {**config, **given, **texts, **nested}


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--config: {key}={text!r} is not YAML; expected a value such as {{name: 1}}") from error


def require_clone(folder: str) -> None:
    """Check that Snakemake can use the path of the folder that contains these rules.

    Raises:
        ConfigError: It cannot.
    """
    reason = "has a [, which keeps Snakemake from finding the profile" if "[" in folder else find_unusable(folder)
    if reason:
        raise ConfigError(f"the folder of Tarquet's rules, {folder!r}, {reason}; move or rename Tarquet's folder")


def require_output_dir(output_dir: str) -> None:
    """Check that the folder of the results exists or can be made, and that Snakemake can use its name.

    Raises:
        ConfigError: One of these is not so.
    """
    expected = f"config: output_dir is {output_dir!r}; expected a folder"
    reason = "begins with -, like an option" if output_dir.startswith("-") else find_unusable(output_dir)
    if reason:
        raise ConfigError(f"{expected}, but it {reason}; use another name")
    if "$" in output_dir:
        raise ConfigError(f"{expected}, but it has a $, and variables are not expanded; write the value")
    if os.path.realpath(output_dir) == os.getcwd():
        raise ConfigError(f"{expected} for the results alone, but it is the working folder; name another folder")
    existing = Path(output_dir).absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{expected}, but {str(existing)!r} is not a folder; move it away, or name another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{expected} that is writable, but {str(existing)!r} is not; name another folder")


def _hint_at_quotes(error: jsonschema.ValidationError) -> str:
    """Return a hint to quote the value, if it should be a string and YAML reads it as something else."""
    schema = str(error.schema)
    if "'string'" not in schema or "'properties'" in schema or not _is_read_by_yaml(error.instance):
        return ""
    return (
        "; YAML reads 2024_01 as a number, 2024-01-31 as a date, yes as true: quote such a name, for example "
        f'{error.path[0]}: "2024_01"'
    )


def _is_read_by_yaml(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_is_read_by_yaml, [*value, *value.values()]))
    return any(map(_is_read_by_yaml, value)) if isinstance(value, list) else isinstance(value, int | float | date)


def _expand_home(config: dict[str, Any]) -> dict[str, Any]:
    """Expand `~` in the names of files, as a shell does; nobody wants a folder named `~`."""
    config |= {key: os.path.expanduser(config[key]) for key in ("output_dir", "container")}
    config["embedder"]["class"] = os.path.expanduser(config["embedder"]["class"])
    config["scores"] = [score | {"class": os.path.expanduser(score["class"])} for score in config["scores"]]
    return config


def _fill_defaults(values: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(values)
    for key, rules in schema.get("properties", {}).items():
        if "default" in rules:
            filled.setdefault(key, rules["default"])
        if isinstance(filled.get(key), Mapping):
            filled[key] = _fill_defaults(filled[key], rules)
    return filled


def name_scores(scores: list[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the classifiers of `scores` by name: the `pred_column` in their arguments, else the name of the class.

    Returns:
        Class and arguments, by the name of the folder for the scores, from `make_visible`.

    Raises:
        ConfigError: Two have the same name, or a name cannot be used for a folder.
    """
    named = {}
    for entry in scores:
        args = entry.get("args", {})
        name = args.get("pred_column", entry["class"].rpartition(":")[2])
        if not isinstance(name, str) or not name or "/" in name or find_unusable(name):
            raise ConfigError(f"scores: pred_column is {name!r}; expected a valid folder name without braces")
        folder = make_visible(name)
        if folder in named:
            raise ConfigError(f"scores: two are named {name!r}; set another pred_column in the args of one")
        named[folder] = {"class": entry["class"], "args": args}
    return named
